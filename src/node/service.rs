//! The node as its clients see it: each request goes to the driver that does such things.

use std::time::Duration;

use tokio::time::Instant;

use super::Node;
#[cfg(doc)]
use super::conditional::Conditional;
#[cfg(doc)]
use super::coordinator::Coordinator;
#[cfg(doc)]
use super::listing::Lister;
use super::listing::{ListingFailure, Page, Question};
use super::request::{ConditionalPut, Failure, FailureKind, Found, Get, Outcome, Put, Receipt, Write};
#[cfg(doc)]
use super::watch::Watches;
use super::watch::{Cursor, NoWatch, Watching};
use crate::types::{Level, Watched};

impl Node {
    /// Reads a key; see [`Coordinator::get`] and [`Conditional::get`].
    ///
    /// # Errors
    /// As there; [`FailureKind::NotReady`] before there is a topology.
    pub async fn get(&self, get: Get) -> Result<Found, Failure> {
        match get.level {
            Level::Linearizable => self.conditional.get(get).await,
            _ => self.coordinator.get(get).await,
        }
    }

    /// Writes a key; see [`Coordinator::put`].
    ///
    /// # Errors
    /// As there; [`FailureKind::NotReady`] before the node has joined: until its clock was compared with the
    /// others', a stamp of it might be far ahead, and stay.
    pub async fn put(&self, put: Put) -> Result<Receipt, Failure> {
        self.check_joined(put.level)?;
        self.coordinator.put(put).await
    }

    /// Writes a key where a condition is true, or once for an `Idempotency-Key`; see [`Conditional::put`].
    ///
    /// # Errors
    /// As there; [`FailureKind::NotReady`] as for [`Self::put`].
    pub async fn put_if(&self, put: ConditionalPut) -> Result<Receipt, Failure> {
        self.check_joined(Level::Linearizable)?;
        self.conditional.put(put).await
    }

    /// A page of keys in order; see [`Lister::page`].
    ///
    /// # Errors
    /// As there.
    pub async fn list(&self, question: Question, deadline: Instant) -> Result<Page, ListingFailure> {
        self.lister.page(question, deadline).await
    }

    /// A watch; see [`Watches::begin`].
    ///
    /// # Errors
    /// As there.
    pub async fn watch(
        &self,
        watched: Watched,
        cursor: Option<&Cursor>,
        deadline: Instant,
    ) -> Result<Watching, NoWatch> {
        self.watches.begin(watched, cursor, deadline).await
    }

    /// Reads a key until what is found is new, that time has come, or the node stops; see [`Watches::wait`]. A read may take as long as `within`.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_new(
        &self,
        get: Get,
        within: Duration,
        is_new: impl Fn(&Found) -> bool,
        until: Instant,
    ) -> Result<Found, Failure> {
        let read = || self.get(Get { deadline: Instant::now() + within, ..get.clone() });
        self.watches.wait(&get.key, (until, within), is_new, || self.is_stopping(), read).await
    }

    /// Writes a key in either way.
    ///
    /// # Errors
    /// As [`Self::put`] and [`Self::put_if`].
    pub async fn write(&self, write: Write) -> Result<Receipt, Failure> {
        match write {
            Write::Plain(put) => self.put(put).await,
            Write::Conditional(put) => self.put_if(put).await,
        }
    }

    /// Nothing is stamped before the clock was compared with the others'.
    pub(super) fn check_joined(&self, level: Level) -> Result<(), Failure> {
        if self.own.has_joined() {
            return Ok(());
        }
        let outcome = Some(Outcome::NotApplied);
        Err(Failure { outcome, ..Failure::before(FailureKind::NotReady, level) })
    }
}
