//! A client's request, carried to its replicas.
