"""The tables of a store, and what changed from one version of them to the next."""

SCHEMA = 2
APPLICATION = 0x46574245  # "FWBE", in the file's header: this database is ours
TABLES = """
CREATE TABLE results (
    key TEXT PRIMARY KEY, problem_hash TEXT NOT NULL, collection TEXT NOT NULL, solver TEXT NOT NULL,
    status TEXT NOT NULL, created TEXT NOT NULL, attempts INTEGER NOT NULL, json TEXT NOT NULL);
CREATE INDEX results_of_problem ON results (problem_hash);
CREATE TABLE masks (
    key TEXT PRIMARY KEY REFERENCES results (key), rows INTEGER NOT NULL, n INTEGER NOT NULL, bits BLOB NOT NULL);
CREATE TABLE certificates (
    problem_hash TEXT NOT NULL, source TEXT NOT NULL, bound REAL NOT NULL, proof TEXT NOT NULL,
    created TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (problem_hash, source));
CREATE TABLE problems (
    hash TEXT PRIMARY KEY, name TEXT NOT NULL, collection TEXT NOT NULL, pattern TEXT NOT NULL,
    rows INTEGER NOT NULL, n INTEGER NOT NULL, meta TEXT NOT NULL, total REAL NOT NULL,
    origin TEXT NOT NULL DEFAULT '', counts BLOB);
"""
UPGRADES = {  # from a version to the next
    1: "ALTER TABLE problems ADD origin TEXT NOT NULL DEFAULT ''; ALTER TABLE problems ADD counts BLOB",
}
PUT_PROBLEM = """
INSERT INTO problems (hash, name, collection, pattern, rows, n, meta, total, origin, counts)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hash) DO UPDATE SET
    collection = coalesce(nullif(excluded.collection, ''), collection),
    origin = excluded.origin, counts = coalesce(excluded.counts, counts)
"""
UNRECORDED = """
SELECT problem_hash, max(json) FROM (
    SELECT problem_hash, json FROM results UNION ALL SELECT problem_hash, NULL FROM certificates)
WHERE problem_hash NOT IN (SELECT hash FROM problems) GROUP BY problem_hash
"""
