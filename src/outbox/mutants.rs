//! Seeded bugs in commit and recovery: what the tests have to catch. They exist with the feature `mutants` only, one
//! at a time, chosen by a test; without the feature `mutant!` is `false` and nothing of this is in the binary.
//! `docs/testing.md` says which clause or which peer's bug each stands for, `tests/mutants.rs` which test catches it.

#[cfg(not(feature = "mutants"))]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
}
#[cfg(feature = "mutants")]
macro_rules! mutant {
    ($name:ident) => {
        $crate::outbox::mutants::is($crate::outbox::mutants::Mutant::$name)
    };
}
pub(super) use mutant;

#[cfg(feature = "mutants")]
pub use chosen::{Mutant, choose, is};

#[cfg(feature = "mutants")]
mod chosen {
    use std::sync::atomic::{AtomicUsize, Ordering};

    macro_rules! mutants {
        ($($(#[$doc:meta])* $name:ident,)*) => {
            /// A seeded bug.
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub enum Mutant {
                $($(#[$doc])* $name,)*
            }

            impl Mutant {
                /// All of them.
                pub const ALL: &[Self] = &[$(Self::$name,)*];
            }
        };
    }

    mutants! {
        /// `committed` without `fdatasync`.
        SyncLeftOut,
        /// A sync that failed is taken for done.
        SyncErrorIgnored,
        /// A batch begins on the last page of the one before.
        DurablePageWrittenAgain,
        /// The last page of a segment takes records, too.
        SpareTaken,
        /// A segment is written again when RAM says that it is acked.
        ReusedBeforeDurable,
        /// A full lane writes over its oldest segment before a header says that it is given up.
        OverwrittenBeforeFloor,
        /// One header is enough for a number to leave.
        OneReservation,
        /// A new segment's name is not synced.
        FolderNotSynced,
        /// A commit that failed twice is answered `committed`.
        FailureForgotten,
        /// A segment keeps its lap when it is taken again.
        LapKept,
        /// What SIGKILL left in the page cache is taken for durable.
        NotSyncedAtOpen,
        /// The walk through the newest segment ends at the first damaged page.
        WalkStopsAtDamage,
        /// Batches of an earlier lap are taken for this one's.
        StaleLapRead,
        /// A damaged tail is taken for an empty one.
        TailTrusted,
        /// A damaged first page of the segment due next is taken for an empty one.
        SuspectsIgnored,
        /// Damage is wiped before what it may have held stands on flash.
        DamageGoesFirst,
        /// A torn write's leftovers stay behind the tail.
        LeftoversKept,
        /// Acks on flash are forgotten at a start.
        AcksForgotten,
        /// What was given up is forgotten at a start.
        FloorForgotten,
        /// Why it was given up is forgotten at a start.
        RunsForgotten,
        /// A copied image goes on under the original's epoch.
        CopyUnseen,
        /// A record's checksum is not compared.
        RecordCrcUnchecked,
        /// A header's checksum is not compared.
        HeaderCrcUnchecked,
        /// The reader stops at damage.
        ReaderStandsAtDamage,
        /// One damaged header costs the rest of its segment.
        DamageLosesTheSegment,
        /// What is damaged is skipped and not counted.
        LossNotCounted,
    }

    /// 0: none; else one more than the mutant's place in the list.
    static CHOSEN: AtomicUsize = AtomicUsize::new(0);

    /// From now on the outbox has this bug.
    pub fn choose(mutant: Option<Mutant>) {
        CHOSEN.store(mutant.map_or(0, |mutant| mutant as usize + 1), Ordering::Relaxed);
    }

    /// Whether the outbox has this bug.
    pub fn is(mutant: Mutant) -> bool {
        CHOSEN.load(Ordering::Relaxed) == mutant as usize + 1
    }
}
