//! The build date: before it no clock can have been right (src/shell/clock.rs). `SOURCE_DATE_EPOCH` makes a build
//! reproducible (<https://reproducible-builds.org/specs/source-date-epoch/>).

use std::env;
use std::time::SystemTime;

fn main() {
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let given = env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse::<u64>().ok());
    let now = || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs());
    println!("cargo::rustc-env=BACKHAUL_BUILD_S={}", given.unwrap_or_else(now));
}
