//! A storage that keeps its word, and several that do not.
