//! One question to some replicas, and their answers as they come: what linearizable writes and the register are made of.

use std::sync::Arc;

use tokio::time::Instant;

use crate::node::answers::Answers;
use crate::ports::{Answer, ReplicaRequest};
use crate::types::{Epoch, NodeNum};

use super::Coordinator;
use super::flight::{Arrival, Flight, Tag};

/// A question under way. Each has an inbox of its own: a late answer to an earlier one is not taken for one to this.
pub(in crate::node) struct Round<'a> {
    coordinator: &'a Coordinator,
    answers: Arc<Answers>,
    flight: Flight,
    deadline: Instant,
}

impl Coordinator {
    /// Asks each of them.
    pub(in crate::node) fn ask(
        &self,
        to: &[NodeNum],
        epoch: Epoch,
        request: &ReplicaRequest,
        deadline: Instant,
    ) -> Round<'_> {
        let mut round = Round { coordinator: self, answers: Answers::new(), flight: Flight::default(), deadline };
        let now = Instant::now();
        for node in to {
            round.flight.sent(*node, now, self.reach.patience(*node));
            let reply_to = round.answers.reply_to(Tag::Query { from: *node }.pack());
            self.send(*node, epoch, deadline, request.clone(), reply_to);
        }
        round
    }
}

impl Round<'_> {
    /// The next answer; `None` at the deadline. Who is silent for longer than is usual is noted as such.
    pub(in crate::node) async fn next(&mut self) -> Option<(NodeNum, Answer)> {
        loop {
            match self.flight.arrival(&self.answers, self.deadline, &self.coordinator.reach).await {
                Arrival::Answer(tag, answer) => return Some((tag.from(), answer)),
                Arrival::Silence(_) => {}
                Arrival::Deadline => return None,
            }
        }
    }
}
