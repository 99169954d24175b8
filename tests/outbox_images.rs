//! Golden images of the on-flash format, version 1. The format is frozen: a change that makes these fail needs a
//! migration. `BLESS=1 cargo test --test outbox_images` writes them anew.

use std::collections::BTreeMap;
use std::path::PathBuf;

use backhaul::config;
use backhaul::outbox::sim_disk::SimDisk;
use backhaul::outbox::{Config, Draft, LaneId, Outbox};
use backhaul::record::{Body, Fetch, Item, Why};
use backhaul::time::Instant;

const LANE: LaneId = LaneId(0);

fn config() -> Config {
    let lane = config::Lane { bytes_max: 3 * 16_384, ..config::Lane::default() };
    Config {
        segment_bytes: 16_384,
        headroom_bytes_min: 0,
        record_bytes_max: 8192,
        lanes: vec![lane],
        device: "gateway-1".into(),
        machine: "0123456789abcdef".into(),
    }
}

fn put(outbox: &mut Outbox<SimDisk>, draft: Draft) {
    outbox.push(LANE, draft, Instant::from_micros(1)).expect("room");
    outbox.commit(LANE).expect("a disk that works");
}

fn draft(topic: &str, body: Body) -> Draft {
    let at = Some(1_767_225_600_000);
    Draft { at, boot: 0xb007, boot_ms: 1000, ttl_s: 0, topic: topic.into(), key: None, body }
}

/// Every field of a header and of a record is there: text and bytes, a key, a time to live, no clock, several pages,
/// acks, a reused segment, records given up.
fn build() -> Outbox<SimDisk> {
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config(), 1);
    put(&mut outbox, draft("boiler/temp", Body::Text("21.5".into())));
    put(&mut outbox, Draft { at: None, ..draft("no/clock", Body::Bytes(vec![0, 255, 10])) });
    put(&mut outbox, Draft { ttl_s: 3600, key: Some("k-1".into()), ..draft("keyed", Body::Text("once".into())) });
    let offer = outbox.offers()[0].clone();
    let fetch =
        Fetch { session: 1, lane: offer.lane.clone(), epoch: offer.epoch, from: 1, records_max: 9, bytes_max: 999 };
    outbox.fetch(&fetch);
    outbox.acked(&offer.lane, offer.epoch, 2, Instant::from_micros(2));
    for n in 0..6 {
        put(&mut outbox, draft("big", Body::Text(format!("{n}").repeat(7000))));
    }
    outbox
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/outbox/v1")
}

fn stored() -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder()).expect("the fixtures are part of the checkout");
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.expect("a readable folder");
        (entry.file_name().into_string().expect("ASCII"), std::fs::read(entry.path()).expect("a readable file"))
    };
    entries.map(file).collect()
}

#[test]
fn what_is_written_today_is_version_1_to_the_byte() {
    let image = build().into_disk().image();
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(folder()).expect("a writable checkout");
        for (name, bytes) in &image {
            std::fs::write(folder().join(name), bytes).expect("a writable checkout");
        }
    }
    let stored = stored();
    assert_eq!(image.keys().collect::<Vec<_>>(), stored.keys().collect::<Vec<_>>());
    for (name, bytes) in &image {
        let differs = bytes.iter().zip(&stored[name]).position(|(ours, golden)| ours != golden);
        assert_eq!((differs, bytes.len()), (None, stored[name].len()), "{name}: first differing byte");
    }
}

#[test]
fn version_1_opens_with_everything_in_it() {
    let (mut outbox, report) = Outbox::open(SimDisk::from_image(stored()), &config(), 2);
    assert_eq!(report.notes, Vec::<String>::new());
    let offer = outbox.offers()[0].clone();
    assert_eq!((offer.first, offer.next), (3, 10));
    let fetch = Fetch {
        session: 1,
        lane: offer.lane.clone(),
        epoch: offer.epoch,
        from: 3,
        records_max: 99,
        bytes_max: 1 << 20,
    };
    let items = outbox.fetch(&fetch);
    let Item::Gap(gap) = &items[0] else { panic!("{items:?}") };
    assert_eq!((gap.from, gap.why), (3, Why::Overflow));
    let bodies: Vec<_> = items[1..]
        .iter()
        .map(|item| match item {
            Item::Record(record) => (record.seq, record.body.clone()),
            Item::Gap(gap) => panic!("{gap:?}"),
        })
        .collect();
    let expected = |n: u64| (n + 4, Body::Text(format!("{n}").repeat(7000)));
    assert_eq!(bodies, (gap.to - 3..6).map(expected).collect::<Vec<_>>());
}
