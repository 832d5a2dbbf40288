//! The store's threads: how they start, how they end, and that one which dies is noticed.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::status::Status;

#[expect(clippy::disallowed_methods, reason = "storage owns its threads, and this is the one place that starts them")]
pub(super) fn thread(
    name: &'static str,
    status: &Arc<Status>,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let watch = Watch { name, status: status.clone() };
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _watch = watch;
        run();
    })
}

/// A thread that dies of a bug takes the store's promise with it: nobody may go on waiting for what it would answer.
struct Watch {
    name: &'static str,
    status: Arc<Status>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.status.fail(format!("the thread {} died", self.name));
        }
    }
}

pub(super) fn join(thread: JoinHandle<()>) {
    // The last owner may be an inbox that one of these threads answers; a thread that died has said so itself.
    if thread.thread().id() != std::thread::current().id() {
        let _ = thread.join();
    }
}
