//! Which peers are worth asking, and for how long to wait.
