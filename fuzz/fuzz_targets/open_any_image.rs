//! `open(any image)` under libFuzzer: the bytes choose what is done to a folder as an agent leaves it, by the same
//! mutator and with the same questions as `tests/outbox_hostile.rs`. `make fuzz-long` runs it.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/hostile/mod.rs"]
mod hostile;
#[path = "../../tests/support/patch_disk.rs"]
mod patch_disk;

thread_local! {
    static FOLDERS: RefCell<hostile::Folders> = RefCell::new(hostile::Folders::new());
}

fuzz_target!(|choices: &[u8]| FOLDERS.with_borrow_mut(|folders| folders.check(choices)));
