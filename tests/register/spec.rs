//! One key as its clients are promised it: operations that take place one after the other.

use stateright::semantics::SequentialSpec;

/// What a conditional write asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Asks {
    Nothing,
    Absent,
    Present,
    /// The value itself. Each is written by one operation alone, so that it stands for its version.
    Is(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Read,
    Write(u8),
    Propose {
        asks: Asks,
        /// `None` deletes.
        value: Option<u8>,
        /// Its `Idempotency-Key`.
        key: Option<u8>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Said {
    Found(Option<u8>),
    Written,
    Applied {
        created: bool,
    },
    /// 412, and what stands there.
    Failed(Option<u8>),
    /// 412, as it was said before.
    FailedBefore,
    /// Definitely not applied: 409, 422, 503.
    Not,
}

/// The key: its value, and what was answered under each `Idempotency-Key`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Spec {
    pub(crate) value: Option<u8>,
    pub(crate) answered: Vec<(u8, Said)>,
}

impl Spec {
    fn propose(&mut self, asks: Asks, value: Option<u8>) -> Said {
        let holds = match asks {
            Asks::Nothing => true,
            Asks::Absent => self.value.is_none(),
            Asks::Present => self.value.is_some(),
            Asks::Is(value) => self.value == Some(value),
        };
        if !holds {
            return Said::Failed(self.value);
        }
        let created = self.value.is_none();
        self.value = value;
        Said::Applied { created }
    }
}

impl SequentialSpec for Spec {
    type Op = Op;
    type Ret = Said;

    fn invoke(&mut self, op: &Op) -> Said {
        match *op {
            Op::Read => Said::Found(self.value),
            Op::Write(value) => {
                self.value = Some(value);
                Said::Written
            }
            Op::Propose { asks, value, key } => {
                let before = self.answered.iter().find(|(k, _)| Some(*k) == key);
                if let Some((_, said)) = before {
                    return if matches!(said, Said::Failed(_)) { Said::FailedBefore } else { *said };
                }
                let said = self.propose(asks, value);
                self.answered.extend(key.map(|key| (key, said)));
                said
            }
        }
    }

    fn is_valid_step(&mut self, op: &Op, said: &Said) -> bool {
        match said {
            Said::Not => true,
            // Also of an operation that comes upon its own answer.
            Said::FailedBefore => matches!(self.invoke(op), Said::Failed(_) | Said::FailedBefore),
            said => self.invoke(op) == *said,
        }
    }
}
