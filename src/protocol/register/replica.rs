//! The replica's rules of the register: (what is promised, what floor and seal refuse, a message) -> yes, or what outbids it.
//!
//! A store keeps what was said yes to in the same transaction, and answers when it is on disk.

use crate::types::Ballot;

/// The rule of `Prepare{ballot}`: only a higher ballot than any before is promised. Ballots up to `refused` are not listened
/// to: they are below the slot's floor, or sealed.
///
/// # Errors
/// What is promised already. Nothing is to be changed.
pub fn prepare(promised: Ballot, refused: Ballot, ballot: Ballot) -> Result<(), Ballot> {
    let bound = promised.max(refused);
    if ballot > bound { Ok(()) } else { Err(bound) }
}

/// The rule of `Accept{ballot, ..}`: what is as high as the promise is accepted, and promised.
///
/// # Errors
/// What is promised already. Nothing is to be changed.
pub fn accept(promised: Ballot, refused: Ballot, ballot: Ballot) -> Result<(), Ballot> {
    let bound = promised.max(refused);
    if ballot >= bound { Ok(()) } else { Err(bound) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Hlc, Writer};

    fn ballot(hlc: u64, writer: u32) -> Ballot {
        Ballot { hlc: Hlc(hlc), writer: Writer(writer) }
    }

    #[test]
    fn a_promise_goes_to_a_higher_ballot_and_an_accept_to_one_as_high() {
        let none = Ballot::default();
        for (promised, asked, promises, accepts) in [
            (ballot(0, 0), ballot(1, 1), true, true),
            (ballot(5, 1), ballot(5, 1), false, true),
            (ballot(5, 1), ballot(5, 2), true, true),
            (ballot(5, 2), ballot(5, 1), false, false),
            (ballot(5, 2), ballot(4, 9), false, false),
        ] {
            let no = Err(promised);
            assert_eq!(prepare(promised, none, asked), if promises { Ok(()) } else { no });
            assert_eq!(accept(promised, none, asked), if accepts { Ok(()) } else { no });
        }
    }

    #[test]
    fn the_floor_stands_for_promises_that_were_purged() {
        let floor = ballot(7, 0);
        assert_eq!(prepare(ballot(2, 1), floor, ballot(6, 1)), Err(ballot(7, 0)));
        assert_eq!(accept(ballot(2, 1), floor, ballot(6, 1)), Err(ballot(7, 0)));
        assert_eq!(accept(ballot(2, 1), floor, ballot(7, 0)), Ok(()));
    }
}
