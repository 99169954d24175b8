//! `docs/failures.md`, held against the code and the rows.
