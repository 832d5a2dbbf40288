//! The planner: which member keeps which slot.
