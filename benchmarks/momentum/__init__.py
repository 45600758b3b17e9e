"""reports/momentum: Frank-Wolfe over streamed Gram matrices."""
