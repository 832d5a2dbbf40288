//! First start: who proposes epoch 1, and when it is committed.
