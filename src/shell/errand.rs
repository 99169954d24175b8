//! What may block, off the reactor: `getaddrinfo` obeys no timeout (launchdarkly/python-server-sdk#493), so each
//! errand has a disposable thread that is abandoned when its answer is no longer wanted. Owns the threads' bound.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

/// Errands that still hang although nobody waits for them, at most; beyond, a new one that may hang fails at once.
pub const ABANDONED_MAX: usize = 4;
/// The same for one that should not hang, and does so only where a file system is ill.
const ILL_MAX: usize = 2 * ABANDONED_MAX;

/// One errand at a time, the answer a `T`.
pub struct Errands<T> {
    shared: Arc<Shared<T>>,
    /// The number of the errand whose answer is wanted.
    wanted: u64,
}

struct Shared<T> {
    desk: Mutex<Desk<T>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// Where the threads leave their answers.
struct Desk<T> {
    /// Threads alive.
    alive: usize,
    /// The number of the errand whose answer is wanted.
    wanted: u64,
    answer: Option<T>,
}

impl<T: Send + 'static> Errands<T> {
    /// Calls `wake` from its threads when there is an answer to take.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        let desk = Mutex::new(Desk { alive: 0, wanted: 0, answer: None });
        Self { shared: Arc::new(Shared { desk, wake: Box::new(wake) }), wanted: 0 }
    }

    /// Runs this errand and forgets the one before. Its answer is for [`Errands::take`] after the wake-up. Fails when
    /// no thread can be had. One that should not hang is run where others have no place any more.
    pub fn run(&mut self, may_hang: bool, errand: impl FnOnce(&Clerk<T>) -> T + Send + 'static) -> io::Result<()> {
        self.abandon();
        {
            let mut desk = self.shared.desk();
            let hang_max = if may_hang { ABANDONED_MAX } else { ILL_MAX };
            if desk.alive > hang_max {
                return Err(io::Error::other(format!("{hang_max} errands hang already")));
            }
            desk.alive += 1;
        }
        let clerk = Clerk { shared: Arc::clone(&self.shared), number: self.wanted };
        // A thread that cannot be made drops the clerk, who then leaves the desk.
        let body = move || {
            let answer = errand(&clerk);
            clerk.hand_in(answer);
        };
        thread::Builder::new().name("errand".into()).spawn(body).map(drop)
    }

    /// The answer to the last errand, once.
    pub fn take(&mut self) -> Option<T> {
        self.shared.desk().answer.take()
    }

    /// The answer is no longer wanted; a thread that hangs is left to itself.
    pub fn abandon(&mut self) {
        self.wanted += 1;
        let mut desk = self.shared.desk();
        desk.wanted = self.wanted;
        desk.answer = None;
    }
}

impl<T> Shared<T> {
    fn desk(&self) -> MutexGuard<'_, Desk<T>> {
        // Each change is one assignment: a panicking thread leaves nothing half done.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's seat at the desk; left even if the errand panics.
pub struct Clerk<T> {
    shared: Arc<Shared<T>>,
    number: u64,
}

impl<T> Clerk<T> {
    /// Somebody still waits for the answer.
    pub fn is_wanted(&self) -> bool {
        self.shared.desk().wanted == self.number
    }

    fn hand_in(&self, answer: T) {
        let mut desk = self.shared.desk();
        if desk.wanted == self.number {
            desk.answer = Some(answer);
            drop(desk);
            (self.shared.wake)();
        }
    }
}

impl<T> Drop for Clerk<T> {
    fn drop(&mut self) {
        self.shared.desk().alive -= 1;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};
    use std::time::Duration;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn errands() -> (Errands<u8>, Receiver<()>) {
        let (sender, woken) = sync_channel(64);
        (Errands::new(move || sender.try_send(()).unwrap_or_default()), woken)
    }

    fn wait_until_all_left(errands: &Errands<u8>) {
        while errands.shared.desk().alive > 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn the_answer_is_taken_once_after_the_wake_up() {
        let (mut errands, woken) = errands();
        errands.run(true, |_| 7).unwrap();
        woken.recv_timeout(DEADLINE).unwrap();
        assert_eq!((errands.take(), errands.take()), (Some(7), None));
    }

    #[test]
    fn late_answers_are_ignored_and_hanging_errands_bounded() {
        static GATE: Mutex<()> = Mutex::new(());
        let gate = GATE.lock().unwrap();
        let (mut errands, woken) = errands();
        let hang = |clerk: &Clerk<u8>| {
            drop(GATE.lock());
            u8::from(clerk.is_wanted())
        };
        for _ in 0..=ABANDONED_MAX {
            errands.run(true, hang).unwrap();
        }
        assert!(errands.run(true, hang).is_err());
        errands.run(false, |_| 3).unwrap();
        woken.recv_timeout(DEADLINE).unwrap();
        assert_eq!(errands.take(), Some(3), "what cannot hang is not held up");
        while errands.run(false, hang).is_ok() {
            assert!(errands.shared.desk().alive <= ILL_MAX + 1, "without bound");
        }
        drop(gate);
        // All of them leave, none of them says a word; then there is room again.
        wait_until_all_left(&errands);
        assert_eq!(errands.take(), None);
        assert!(woken.try_recv().is_err());
        errands.run(true, |clerk| u8::from(clerk.is_wanted())).unwrap();
        woken.recv_timeout(DEADLINE).unwrap();
        assert_eq!(errands.take(), Some(1));
    }

    #[test]
    fn an_errand_that_panics_frees_its_place() {
        let (mut errands, _woken) = errands();
        errands.run(true, |_| panic!("an errand that panics")).unwrap();
        wait_until_all_left(&errands);
    }
}
