//! Breadth-first search over the states of a [`World`], shortest trace first. Each state is reached by at most one
//! path, checked, and run to quiescence with nothing going wrong any more; a run ends early where it meets a state that
//! is known to come to a good end.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Instant;

use super::world::{Rules, Step, World};

/// Steps from any state to the end, at most.
const CALM_STEPS_MAX: usize = 2_000;

/// How far a search goes; whatever comes first.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub depth: usize,
    pub states: usize,
    pub seconds: u64,
}

/// What a search did.
#[derive(Debug)]
pub struct Report {
    pub states: usize,
    pub steps: usize,
    pub depth: usize,
    /// Nothing is left beyond.
    pub complete: bool,
    pub calm_steps: usize,
    pub seconds: f64,
}

/// A violation and how to come to it.
#[derive(Debug)]
pub struct Violation {
    pub what: String,
    pub trace: Vec<Step>,
}

struct Search {
    seen: Seen,
    /// Where each state came from.
    parents: Vec<(u32, Step)>,
    /// Come to a good end when nothing more goes wrong.
    calm: Seen,
    steps: usize,
    calm_steps: usize,
}

type Seen = HashSet<u128, BuildHasherDefault<Same>>;

/// Searches; the first violation ends it.
pub fn explore(rules: &Arc<Rules>, bounds: Bounds) -> Result<Report, Violation> {
    let begun = Instant::now();
    let mut search =
        Search { seen: Seen::default(), parents: Vec::new(), calm: Seen::default(), steps: 0, calm_steps: 0 };
    let root = root(rules).map_err(|what| Violation { what, trace: Vec::new() })?;
    search.seen.insert(root.key());
    search.parents.push((0, rules.prelude.first().copied().unwrap_or(super::world::Act::Idle).into()));
    let mut layer = vec![(0, root)];
    let (mut depth, mut complete) = (0, true);
    while !layer.is_empty() {
        if depth == bounds.depth || search.parents.len() >= bounds.states {
            complete = false;
            break;
        }
        let mut next = Vec::new();
        for (id, world) in layer {
            if search.parents.len() >= bounds.states || begun.elapsed().as_secs() >= bounds.seconds {
                complete = false;
                break;
            }
            search.expand(id, &world, &mut next)?;
        }
        layer = next;
        depth += 1;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let Search { parents, steps, calm_steps, .. } = search;
    Ok(Report { states: parents.len(), steps, depth, complete, calm_steps, seconds })
}

/// Where a search begins.
pub fn root(rules: &Arc<Rules>) -> Result<World, String> {
    rules.prelude.iter().try_fold(World::new(rules), |world, act| {
        world.apply((*act).into()).unwrap_or_else(|| Err("the prelude leads nowhere".into()))
    })
}

impl Search {
    fn expand(&mut self, id: u32, world: &World, next: &mut Vec<(u32, World)>) -> Result<(), Violation> {
        let mut violation = None;
        for act in world.acts() {
            world.steps(act, &mut |step, result| {
                if violation.is_some() {
                    return;
                }
                self.steps += 1;
                let found = result.and_then(|world| {
                    if self.seen.insert(world.key()) {
                        self.come_to_an_end(&world)?;
                        next.push((self.parents.len() as u32, world));
                        self.parents.push((id, step));
                    }
                    Ok(())
                });
                violation = found.err().map(|what| (what, step));
            });
        }
        match violation {
            None => Ok(()),
            Some((what, step)) => {
                let mut trace = self.trace(id);
                trace.push(step);
                Err(Violation { what, trace })
            }
        }
    }

    fn trace(&self, mut id: u32) -> Vec<Step> {
        let mut trace = Vec::new();
        while id != 0 {
            let (parent, step) = self.parents[id as usize];
            trace.push(step);
            id = parent;
        }
        trace.reverse();
        trace
    }

    /// From here on nothing goes wrong: everything must be delivered, and more be taken.
    fn come_to_an_end(&mut self, world: &World) -> Result<(), String> {
        let mut open = vec![world.calm()];
        while let Some(mut world) = open.pop() {
            let mut run = Vec::new();
            loop {
                let key = world.key();
                if !self.calm.insert(key) {
                    if run.contains(&key) {
                        return Err(format!("wedged: round and round, {} steps: {}", run.len(), world.describe()));
                    }
                    break;
                }
                run.push(key);
                let Some(act) = world.calm_act() else {
                    world.check_end()?;
                    open.extend(world.probe()?);
                    break;
                };
                self.calm_steps += 1;
                if run.len() > CALM_STEPS_MAX {
                    return Err(format!("wedged: no end after {CALM_STEPS_MAX} steps: {}", world.describe()));
                }
                let next = world.apply(act.into()).unwrap_or_else(|| Err("a calm step leads nowhere".into()));
                world = next.map_err(|what| format!("{what}, with nothing going wrong any more, in {act:?}"))?;
            }
        }
        Ok(())
    }
}

/// Takes the steps of a trace again and says what each leads to; then the way to the end.
pub fn replay(rules: &Arc<Rules>, trace: &[Step], say: &mut impl FnMut(String)) -> Result<(), String> {
    let mut world = root(rules)?;
    say(format!("begin                {}", world.describe()));
    for step in trace {
        world = world.apply(*step).unwrap_or_else(|| Err("leads nowhere".into()))?;
        say(format!("{step}\n                     {}", world.describe()));
    }
    world = world.calm();
    say("nothing goes wrong any more".into());
    let mut run = Vec::new();
    while run.len() < CALM_STEPS_MAX {
        let Some(act) = world.calm_act() else {
            world.check_end()?;
            world.probe()?;
            return Ok(());
        };
        world = world.apply(act.into()).unwrap_or_else(|| Err("leads nowhere".into()))?;
        let key = world.key();
        if run.contains(&key) {
            return Err(format!("wedged: round and round: {}", world.describe()));
        }
        run.push(key);
        say(format!("{act:?}\n                     {}", world.describe()));
    }
    Err("wedged: it never ends".into())
}

/// The trace that these words stand for, as a failure printed them.
pub fn parse(rules: &Arc<Rules>, words: &str) -> Result<Vec<Step>, String> {
    let mut world = root(rules)?;
    let mut trace = Vec::new();
    for word in words.split(';').map(str::trim).filter(|word| !word.is_empty()) {
        let mut found = None;
        for act in world.acts() {
            world.steps(act, &mut |step, result| {
                if step.to_string() == word {
                    found = Some((step, result));
                }
            });
        }
        let (step, result) = found.ok_or_else(|| format!("no step '{word}' here: {}", world.describe()))?;
        trace.push(step);
        match result {
            Ok(next) => world = next,
            // The last one, as the failure had it.
            Err(_) => break,
        }
    }
    Ok(trace)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.act)?;
        match self.mishap {
            None => Ok(()),
            Some(mishap) => write!(f, " and {:?} at call {}", mishap.kind, mishap.call),
        }
    }
}

/// 128 bits of a state: two lanes of multiply and rotate.
#[derive(Debug, Clone, Copy)]
pub struct Digest(u64, u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0x1234_5678, 0x9abc_def0)
    }
}

impl Digest {
    pub fn value(&self) -> u128 {
        u128::from(self.0) << 64 | u128::from(self.1)
    }
}

impl Hasher for Digest {
    fn finish(&self) -> u64 {
        self.1
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.write_u64(u64::from(*byte) + 0x100);
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 29;
        self.1 = (self.1.rotate_left(7) ^ value).wrapping_mul(0xd6e8_feb8_6659_fd93);
        self.1 ^= self.1 >> 31;
    }
}

impl fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}

/// A key that is a hash already.
#[derive(Default)]
pub struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u128");
    }

    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}
