"""reports/sampling: stages that draw masks or gradients at random, beside those that do not."""
