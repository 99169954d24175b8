//! Opening a lane from whatever lies in its files. Total: it always ends with a lane that works, and says what it
//! lost. It reads one page a segment, walks the newest segment of each log, and nothing of the backlog.

use std::io;

use super::Report;
use super::format::{self, Header, PAGE_BYTES, Page, Place, SEGMENT_BYTES_MAX, Slot};
use super::lane::{Io, Lane, Purpose, Reach};
use super::log::{Leave, Log, RESERVE_STEP};
use super::mutants::mutant;
use super::runs::Runs;
use super::segments::{Segment, Use, make_segment, segment_name};
use crate::record::Why;

/// What a segment's pages say at first sight.
enum Scan {
    /// Zeros, whole.
    Empty,
    /// Never whole, or, if unknown, of no known age: nothing in it can be read.
    Remake { unknown: bool },
    /// Its first intact header of the newest lap in it, and whether its first page is damaged: not zero, not stale.
    Batches { first: Header, first_page_bad: bool },
}

/// What the walk through a log's newest segment found.
struct Walk {
    headers: Vec<Header>,
    /// Position after a batch that failed, as its writer heard: a header behind it goes on before it. 0: none did.
    failed: u64,
    /// Page after the last batch.
    page: u32,
    /// Page after the last batch with records.
    records_end: u32,
    records: u32,
    /// The page after the last batch is damaged: something durable may have stood there.
    tail_bad: bool,
    /// There are damaged pages behind that one: a torn write's leftovers.
    leftovers: bool,
    /// Positions of the last batch that are not intact, and whether by damage.
    lost: Vec<(u64, bool)>,
}

/// What has to be put right on flash once the lane's logs are known.
#[derive(Default)]
struct Repairs {
    /// The newest log's tail is in doubt: that must stand on flash before the evidence goes.
    doubt: bool,
    /// Numbers of segments in which a new lap may have begun: their first page is damaged, or all there is.
    suspects: Vec<u32>,
    /// Numbers of segments that were never whole.
    remake: Vec<u32>,
    /// Damaged pages lie behind the tail, which a later start must not take for a damaged tail.
    leftovers: bool,
    /// The first page of this segment, the newest one, is damaged; its lap began behind it. A later start, once the
    /// segment is covered, must not take that for a lap that began since.
    first_page_bad: Option<u32>,
}

impl Lane {
    /// Takes in the lane's segments: number and size in bytes. Afterwards it has at least one log, unless storage takes
    /// nothing at all.
    pub fn recover(&mut self, io: &mut Io, files: &[(u32, u64)], report: &mut Report) {
        let Report { notes, lost_lanes, .. } = report;
        let mut scanned: Vec<(usize, Header, bool)> = Vec::new();
        let mut repairs = Repairs::default();
        let mut unknown = 0;
        let mut empty = Vec::new();
        for &(number, bytes) in files {
            // Longer than any segment is hostile: what lies behind is left alone.
            let pages = (bytes.min(u64::from(SEGMENT_BYTES_MAX)) / PAGE_BYTES as u64) as u32;
            let mut segment = Segment { number, pages, used: None, lap: 0, cleared: pages };
            match self.scan(io, &segment) {
                Scan::Empty => {
                    segment.cleared = 0;
                    empty.push(segment);
                    continue;
                }
                Scan::Remake { unknown: lost } => {
                    unknown += u64::from(lost);
                    if lost {
                        repairs.suspects.push(number);
                    } else {
                        segment.pages = self.segment_bytes / PAGE_BYTES as u32;
                        repairs.remake.push(number);
                    }
                }
                Scan::Batches { first, first_page_bad } => scanned.push((self.segments.len(), first, first_page_bad)),
            }
            self.segments.push(segment);
        }
        // Killed between making a file and syncing the folder: a later power cut takes the file, whatever was synced
        // in it. Only what the folder durably knows may be written.
        match if empty.is_empty() { Ok(()) } else { io.sync_dir(Purpose::Repair) } {
            Ok(()) => self.segments.append(&mut empty),
            Err(error) => notes.push(format!("lane {}: the folder cannot be synced: {error}", self.name)),
        }
        scanned.sort_by_key(|(_, header, _)| header.lap);
        self.lap = scanned.last().map_or(0, |(_, header, _)| header.lap);
        self.may_shed = true;
        self.last_taken = scanned.last().map_or(0, |(index, ..)| *index);
        let mut origins: Vec<u64> = Vec::new();
        for (_, header, _) in &scanned {
            origins.retain(|origin| *origin != header.origin);
            origins.push(header.origin);
        }
        let mut older_suspects = Vec::new();
        // Oldest log first: in the order of their newest segments. The newest one says which others are done with.
        for (index, origin) in origins.iter().enumerate().rev() {
            let own: Vec<_> = scanned.iter().filter(|(_, header, _)| header.origin == *origin).collect();
            let newest = index + 1 == origins.len();
            if own.last().is_some_and(|(_, header, _)| header.lap < self.durable_alive) {
                own.iter().for_each(|(index, header, _)| self.segments[*index].lap = header.lap);
                continue;
            }
            let all = newest.then_some(scanned.as_slice());
            let mut own_repairs = self.recover_log(io, &own, all, if newest { unknown } else { 0 }, notes);
            if newest {
                repairs.doubt = own_repairs.doubt;
                repairs.leftovers = own_repairs.leftovers;
                repairs.first_page_bad = own_repairs.first_page_bad;
                repairs.suspects.append(&mut own_repairs.suspects);
            } else {
                older_suspects.append(&mut own_repairs.suspects);
            }
        }
        self.doubt_newest(&mut repairs, older_suspects);
        for log in
            (0..self.logs.len().saturating_sub(1)).rev().filter(|log| self.logs[*log].is_drained()).collect::<Vec<_>>()
        {
            self.close(log);
        }
        // A copy within the folder: no header could ever say of one of the two that it is dead, and not of the other.
        let taken: Vec<u32> = self.segments.iter().filter_map(|segment| segment.used).map(|used| used.lap).collect();
        for segment in self.segments.iter_mut().filter(|s| s.used.is_none() && taken.contains(&s.lap)) {
            segment.lap = 0;
        }
        if self.logs.is_empty() && unknown > 0 {
            lost_lanes.push(self.name.clone());
        }
        self.prepare(io, repairs, notes);
    }

    /// A segment that an older log needs no more, with a damaged first page: only the newest log can have written there.
    fn doubt_newest(&mut self, repairs: &mut Repairs, mut older_suspects: Vec<u32>) {
        let Some(log) = self.logs.last_mut().filter(|_| !older_suspects.is_empty()) else { return };
        if !repairs.doubt {
            log.skip_to(log.reserved[1].max(log.next - 1) + RESERVE_STEP + 1, Why::Unknown);
            log.sent_max = log.next - 1;
        }
        repairs.doubt = true;
        repairs.suspects.append(&mut older_suspects);
    }

    /// What is still to be written before records may leave: nothing, after an ordinary start. The order matters:
    /// what the damage may have held stands on flash as a run before the damage goes.
    fn prepare(&mut self, io: &mut Io, repairs: Repairs, notes: &mut Vec<String>) {
        let Repairs { doubt, mut suspects, mut remake, leftovers, first_page_bad } = repairs;
        if self.logs.is_empty() {
            // Damaged while it was filled it may be short, too: made anew, it is as long as any.
            let pages = self.segment_bytes / PAGE_BYTES as u32;
            for segment in self.segments.iter_mut().filter(|segment| suspects.contains(&segment.number)) {
                segment.pages = segment.pages.max(pages);
            }
            remake.append(&mut suspects);
        }
        self.remake(io, &remake, notes);
        if self.logs.is_empty() && self.begin(io).is_err() {
            self.go_on_in_ram(io);
            notes.push(format!("lane {}: nothing can be written: {}", self.name, io.last_error));
        }
        // An error that has passed since: nothing is to be put right there.
        suspects.retain(|suspect| {
            let segment = self.segments.iter().find(|segment| segment.number == *suspect);
            segment.is_none_or(|segment| self.read_header(io, segment, 0).is_none())
        });
        // Where a new lap may have begun, it goes on behind the damage; what it was stays to be seen until then. Not
        // behind an error: what lies there may date the segment some day, and no start would find the new lap.
        let mut behind = |number: &u32| {
            let goes_on = |s: &Segment| s.number == *number && s.pages > 1;
            let index = self.segments.iter().position(goes_on)?;
            self.try_read_page(io, &self.segments[index], 0).is_ok().then_some(index)
        };
        let taken = suspects.iter().find_map(&mut behind).map(|index| (index, self.segments[index].number));
        if let Some((index, number)) = taken {
            suspects.retain(|suspect| *suspect != number);
            self.take(index, self.logs.len() - 1);
            self.segments[index].used.as_mut().expect("just taken").page = 1;
        }
        if !(doubt || taken.is_some()) || mutant!(DamageGoesFirst) || self.write_repair(io) {
            self.remake(io, &suspects, notes);
            let mut scrubbed =
                self.scrub_first_pages(io, taken.map(|(_, number)| number).into_iter().chain(first_page_bad));
            if leftovers || doubt || taken.is_some() {
                scrubbed = scrubbed.and(self.scrub_tail(io));
            }
            if let Err(error) = scrubbed {
                notes.push(format!("lane {}: {error}", self.name));
            }
            self.shed(io);
        }
        for log in 0..self.logs.len() {
            self.reserve(io, log, Reach::Spare);
            // Never written by us, but then neither could be told by name.
            if self.logs[..log].iter().any(|older| older.epoch == self.logs[log].epoch) {
                self.renumber(io, log);
            }
        }
    }

    /// Makes segments anew that hold nothing.
    fn remake(&mut self, io: &mut Io, numbers: &[u32], notes: &mut Vec<String>) {
        let name = self.name.clone();
        self.segments.retain(|segment| {
            if !numbers.contains(&segment.number) {
                return true;
            }
            let file = segment_name(&name, segment.number);
            let made = make_segment(io, &file, segment.pages * PAGE_BYTES as u32);
            made.inspect_err(|error| notes.push(format!("{file} cannot be made: {error}"))).is_ok()
        });
    }

    /// Clears what lies behind the tail.
    fn scrub_tail(&mut self, io: &mut Io) -> io::Result<()> {
        let current = self.current(self.log().origin).and_then(|index| Some((index, self.segments[index].used?)));
        current.map_or(Ok(()), |(index, used)| self.clear_leftovers(io, index, used.page, used.lap))
    }

    /// Clears the first pages of segments that go on behind them, if they are damaged: one that could not be read for a
    /// moment holds what was promised, of whatever lap.
    fn scrub_first_pages(&self, io: &mut Io, numbers: impl Iterator<Item = u32>) -> io::Result<()> {
        for number in numbers {
            if let Some(index) = self.segments.iter().position(|segment| segment.number == number) {
                self.clear_pages(io, index, 0..1, self.lap + 1)?;
            }
        }
        Ok(())
    }

    fn write_repair(&mut self, io: &mut Io) -> bool {
        match self.logs.len().checked_sub(1) {
            Some(newest) => matches!(self.write_header(io, newest, Purpose::Repair, Reach::Again), Ok(true)),
            None => false,
        }
    }

    fn scan(&self, io: &mut Io, segment: &Segment) -> Scan {
        let (bytes, kind) = self.read_page(io, segment, 0);
        let place = Place { segment: segment.number, page: 0 };
        let header = Header::decode(&bytes[..format::PAYLOAD_BYTES], place).filter(|header| header.lane == self.name);
        if let Some(first) = header {
            return Scan::Batches { first, first_page_bad: false };
        }
        let mut newest: Option<Header> = None;
        let mut zero = kind == Page::Zero;
        let first_page_bad = kind == Page::Bad;
        for page in 1..segment.pages {
            let (bytes, kind) = self.read_page(io, segment, page);
            zero &= kind == Page::Zero;
            let place = Place { segment: segment.number, page };
            let header = Header::decode(&bytes[..format::PAYLOAD_BYTES], place).filter(|h| h.lane == self.name);
            if let Some(header) = header
                && newest.as_ref().is_none_or(|newest| newest.lap < header.lap)
            {
                newest = Some(header);
            }
        }
        // Zeros, shorter than what is made: perhaps cut while it was filled, before anything could lie in it.
        let short = u64::from(segment.pages) * (PAGE_BYTES as u64) < u64::from(self.segment_bytes);
        match newest {
            Some(first) => Scan::Batches { first, first_page_bad },
            None if segment.pages == 0 || zero && short => Scan::Remake { unknown: false },
            None if zero => Scan::Empty,
            None => Scan::Remake { unknown: true },
        }
    }

    /// One log from its segments, in the order of their laps; the newest log gets `all` segments of the lane.
    fn recover_log(
        &mut self,
        io: &mut Io,
        own: &[&(usize, Header, bool)],
        all: Option<&[(usize, Header, bool)]>,
        unknown: u64,
        notes: &mut Vec<String>,
    ) -> Repairs {
        let Some(&(newest, first, first_page_bad)) = own.last() else { return Repairs::default() };
        let segment = self.segments[*newest].clone();
        // After SIGKILL the page cache may hold what flash does not.
        if !mutant!(NotSyncedAtOpen)
            && let Err(error) = io.sync(&segment_name(&self.name, segment.number), Purpose::Repair)
        {
            notes.push(format!("lane {}: sync failed: {error}", self.name));
        }
        let walk = self.walk(io, &segment, first);
        let top = walk.headers.last().unwrap_or(first);
        let firsts = own[..own.len() - 1].iter().map(|(_, header, _)| header);
        let headers: Vec<&Header> = firsts.chain(&walk.headers).collect();
        let highest = |field: fn(&Header) -> u64| headers.iter().map(|header| field(header)).max().unwrap_or(0);
        let acked = if mutant!(AcksForgotten) { 0 } else { highest(|header| header.acked) };
        let given_up = (top.floor.max(acked), Runs::from_header(&top.runs));
        let (floor, runs) = if mutant!(FloorForgotten) { (acked, Runs::default()) } else { given_up };
        let last = (top.next() - 1).max(floor);
        let mut log = Log::new(top.origin, top.epoch, all.map_or(Leave::Durable, |_| self.leave()));
        log.base = top.base.min(acked);
        log.acked = acked;
        log.floor = floor;
        log.next = last + 1;
        log.durable = last;
        log.written = last;
        log.durable_acked = acked;
        log.durable_floor = floor;
        log.covered_before = walk.headers.iter().rev().nth(1).map_or(0, |before| before.acked.max(before.floor));
        log.runs = if mutant!(RunsForgotten) { Runs::default() } else { runs };
        log.runs.trim(acked);
        // A crash may have left this epoch on one page only: then nothing of it has left, nor may it yet.
        let own_epoch = headers.iter().filter(|header| header.epoch == top.epoch);
        let mut reserved: Vec<u64> = own_epoch.map(|header| header.reserved).collect();
        reserved.sort_unstable();
        log.reserved = [reserved.iter().rev().nth(1).copied().unwrap_or(0), highest(|header| header.reserved)];
        // Likewise numbers that were skipped, if the newest header alone says so.
        if let Some(skipped) = log.runs.at(top.first - 1)
            && headers.iter().filter(|header| header.next() >= top.first).count() < 2
        {
            log.reserved[0] = log.reserved[0].min(skipped.from - 1);
        }
        log.runs.fill(acked + 1, floor, Why::Unknown);
        for (position, damaged) in &walk.lost {
            if *position > acked {
                self.counters.torn +=
                    log.runs.fill(*position, *position, if *damaged { Why::Unknown } else { Why::Torn });
            }
        }
        let mut suspects = self.place(own, &walk, &log);
        if let Some(all) = all {
            self.durable_alive = top.alive;
            // What is left of a log that is done with does not say that nothing was written over it since.
            let dead =
                all.iter().filter(|(_, header, bad)| *bad && header.origin != top.origin && header.lap < top.alive);
            suspects.extend(dead.map(|(index, ..)| self.segments[*index].number));
        }
        // What lies there is the newest log's to doubt: it alone takes segments.
        let reused = all.is_some() && !suspects.is_empty();
        let doubt = walk.tail_bad && !mutant!(TailTrusted) || unknown > 0 || reused;
        if doubt || top.eager {
            let steps = unknown + u64::from(doubt);
            let next = log.reserved[1].max(last) + steps * RESERVE_STEP + 1;
            let why = if doubt { Why::Unknown } else { Why::Torn };
            notes.push(format!(
                "lane {}: the tail is not proved, numbers go on from {next} ({})",
                self.name,
                why.as_str()
            ));
            log.skip_to(next, why);
        }
        if all.is_some() {
            // Its numbers would mean two things once the header behind it is damaged.
            log.skip_to(walk.failed, Why::Torn);
        }
        if log.leave == Leave::Reserved && !top.eager {
            // Two headers have to say so before a record leaves that is not on flash.
            log.reserved = [log.durable.min(log.reserved[0]); 2];
        }
        log.sent_max = log.next - 1;
        log.check_invariants();
        self.logs.insert(0, log);
        let first_page_bad = first_page_bad.then_some(segment.number);
        Repairs { doubt, suspects, leftovers: walk.leftovers, first_page_bad, ..Repairs::default() }
    }

    /// Says of each segment what lies in it. Returns the numbers of those whose first page is damaged and whose
    /// other pages are covered: a new lap may have begun there.
    fn place(&mut self, own: &[&(usize, Header, bool)], walk: &Walk, log: &Log) -> Vec<u32> {
        let mut suspects = Vec::new();
        for (rank, (index, first, first_page_bad)) in own.iter().enumerate() {
            let newest = rank + 1 == own.len();
            let mut end = own.get(rank + 1).map_or(log.next, |(_, header, _)| header.first).min(log.next);
            // What was skipped between two segments lies in neither.
            while let Some(run) = log.runs.at(end - 1) {
                end = run.from;
            }
            if *first_page_bad && !mutant!(SuspectsIgnored) && !newest && end <= log.covered() + 1 {
                suspects.push(self.segments[*index].number);
                continue;
            }
            let pages = self.segments[*index].pages;
            let (page, records_end, records) =
                if newest { (walk.page, walk.records_end, walk.records) } else { (pages, pages, 0) };
            let batches = if newest { walk.headers.len() as u32 } else { 0 };
            let (origin, lap) = (first.origin, first.lap);
            let used = Use { origin, lap, first: first.first, end, records, batches, page, records_end };
            self.segments[*index].lap = first.lap;
            self.segments[*index].used = Some(used);
        }
        suspects
    }

    fn walk(&self, io: &mut Io, segment: &Segment, first: &Header) -> Walk {
        let (mut headers, mut records) = (Vec::<Header>::new(), 0u32);
        let (mut page, mut last_at, mut end, mut records_end) = (0, 0, 0, 0);
        let mut failed = 0;
        let mut bad = Vec::new();
        while page < segment.pages {
            let (bytes, kind) = self.read_page(io, segment, page);
            let place = Place { segment: segment.number, page };
            let header = Header::decode(&bytes[..format::PAYLOAD_BYTES], place).filter(|h| h.lane == self.name);
            match header {
                Some(header) if (header.lap == first.lap || mutant!(StaleLapRead)) && header.origin == first.origin => {
                    for before in headers.extract_if(.., |before| before.next() > header.first) {
                        failed = failed.max(before.next());
                    }
                    last_at = page;
                    page += header.pages();
                    end = page.min(segment.pages);
                    records = records.saturating_add(header.count);
                    records_end = if header.count > 0 { end } else { records_end };
                    headers.push(header);
                    continue;
                }
                // The spare page never holds records, and what its header says stands in an older one or can be found
                // again: damage there leaves nothing in doubt.
                None if kind == Page::Bad && page < segment.data_pages() => {
                    bad.push(page);
                    if mutant!(WalkStopsAtDamage) {
                        break;
                    }
                }
                // A stale header, if only half of its page, is from before: its sector was not written since. A page of
                // this very lap without a header is the inside of a batch whose first page was not written, or was
                // written over since.
                Some(_) | None => {}
            }
            page += 1;
        }
        let lost = headers.last().map_or(Vec::new(), |last| self.lost_in_batch(io, segment, last_at, last));
        let tail_bad = bad.contains(&end);
        let leftovers = bad.iter().any(|page| *page > end) && !mutant!(LeftoversKept);
        Walk { headers, failed, page: end, records_end, records, tail_bad, leftovers, lost }
    }

    /// What of the newest batch is not intact. Pages that are zero or stale were never synced: nothing was promised.
    fn lost_in_batch(&self, io: &mut Io, segment: &Segment, page: u32, header: &Header) -> Vec<(u64, bool)> {
        let payload = self.read_batch(io, segment, page, header.pages());
        let slots = format::records(header, &payload);
        if slots.iter().all(|slot| matches!(slot, Slot::Intact(_))) {
            return Vec::new();
        }
        // Each page once, however many records lie in it.
        let ends = segment.pages.min(page.saturating_add(header.pages()));
        let never_written: Vec<bool> = (page..ends)
            .map(|at| match self.read_page(io, segment, at).1 {
                Page::Zero => true,
                Page::Written { lap } => lap < header.lap,
                Page::Bad => false,
            })
            .collect();
        let mut lost = Vec::new();
        for (position, slot) in (header.first..).zip(slots) {
            let Slot::Damaged(bytes) = slot else { continue };
            let (from, to) = (bytes.start / format::PAYLOAD_BYTES, bytes.end.saturating_sub(1) / format::PAYLOAD_BYTES);
            let damaged = !(from..=to).any(|index| never_written.get(index) == Some(&true));
            lost.push((position, damaged));
        }
        lost
    }
}
