//! What is known of the peers' reachability.
