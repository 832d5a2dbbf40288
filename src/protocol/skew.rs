//! Whether this node's wall clock can be trusted.
