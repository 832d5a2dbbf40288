//! Peers and PeerHandler over gRPC.
