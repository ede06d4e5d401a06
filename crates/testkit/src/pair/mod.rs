//! Both ends of a migration over a simulated link, with a virtual clock and things that go wrong.
//!
//! [`Pair`] is the driver that a session is in reality: it feeds the engines, carries out their actions on
//! [`FakeGuest`]s, moves messages and pages over channels that keep their order (and no order among each
//! other), and injects one [`Fault`] for each that a [`Scenario`] names. After every step it checks what must
//! always hold: no two copies run, and a copy that starts is the copy that was paused.

mod following;
mod late;
mod leading;
mod link;
mod scenario;
mod sides;
mod throttle;

use std::time::Duration;

use migrated_engine::destination::{Destination, DestinationConfig, DestinationEvent};
use migrated_engine::source::{Source, SourceConfig, SourceEvent};
use migrated_engine::{Compression, MigrationRecord, MigrationState, patience_for, policy_for};
use migrated_pages::{BlockId, PageSet, RamBlock, RamLayout};
use migrated_wire::{CommitOutcome, GuestIdentity, PROTOCOL, SectionName};

use crate::guest::FakeGuest;
use crate::rng::Rng;
use following::Following;
use late::Late;
use leading::Leading;
use link::{End, Happening, Link};
pub use scenario::{Fault, GuestOperation, Scenario};
use throttle::Throttle;

/// A simulated pair of hosts in a migration.
#[derive(Debug)]
pub struct Pair {
    scenario: Scenario,
    rng: Rng,
    link: Link,
    source: Source,
    destination: Destination,
    /// The guest's copy at the source; `None` once it was retired.
    source_guest: Option<FakeGuest>,
    destination_guest: FakeGuest,
    throttle: Throttle,
    late: Late,
    /// The source's guest as it was when it was last paused.
    paused: Option<FakeGuest>,
    destination_alive: bool,
    /// The commit as the destination wrote it down, where a crash can't reach.
    committed: Option<u64>,
    ever_ran_at_destination: bool,
    messages: u64,
    leading: Leading,
    following: Following,
    /// Which link this is.
    generation: u64,
    /// No link before this moment.
    outage_until: Duration,
    /// Since when nothing can change any more, though neither end is over.
    stranded_since: Option<Duration>,
}

/// How a simulated migration ended.
#[derive(Debug)]
pub struct Ending {
    /// The source's record.
    pub record: MigrationRecord,
    /// The source's final state.
    pub state: MigrationState,
    /// The source's guest, if it is still the source's.
    pub source_guest: Option<FakeGuest>,
    /// The destination's record.
    pub destination: MigrationRecord,
    /// Whether the guest runs at the destination.
    pub runs_at_destination: bool,
    /// Whether it ever did.
    pub ever_ran_at_destination: bool,
    /// Frames that came to the source while the guest was paused and that it saw at the destination.
    pub late_frames: u64,
}

const EPOCH: u64 = 7;
/// Longer than it takes an end to give up waiting for the other.
const STRANDED: Duration = Duration::from_secs(60);
/// Longer than every timeout of the engine together; a migration that lasts longer hangs.
const PATIENCE: Duration = Duration::from_secs(3600);

impl Pair {
    /// A pair for `scenario` with a fresh guest.
    #[must_use]
    pub fn new(scenario: Scenario) -> Self {
        let block = |name: &str, guest_base, pages| RamBlock { name: name.into(), guest_base, pages };
        let pages = scenario.pages.max(2);
        let layout =
            RamLayout::new(vec![block("ram0", 0, pages / 2), block("ram1", 1 << 32, pages - pages / 2)])
                .expect("two small blocks are a layout");
        Self::with_guest(scenario, FakeGuest::running(layout))
    }

    /// A pair for `scenario` with a guest that exists already, for a second attempt.
    #[must_use]
    pub fn with_guest(scenario: Scenario, guest: FakeGuest) -> Self {
        let identity = GuestIdentity {
            layout: guest.layout().clone(),
            sections: vec![SectionName { kind: "cpu".into(), instance: 0, version: 1 }],
            cpu: Vec::new().into(),
        };
        let config = SourceConfig {
            identity: identity.clone(),
            epoch: EPOCH,
            mode: scenario.mode,
            channels: scenario.channels,
            verify: scenario.verify,
            compression: Compression::Auto,
            limits: scenario.limits,
            guest_clock: None,
            peer: "destination".into(),
        };
        let destination = DestinationConfig {
            identity,
            epoch: EPOCH,
            rehearsal: Duration::from_micros(100),
            postcopy: Ok(()),
            patience: patience_for(scenario.limits.reconnect_window),
            peer: "source".into(),
        };
        let mut link = Link::new(scenario.channels);
        for channel in 0..scenario.channels {
            link.at(Duration::ZERO, Happening::ChannelFree(channel));
        }
        let version = PROTOCOL.max;
        link.at(Duration::ZERO, Happening::Source(SourceEvent::Connected { version }));
        link.at(Duration::ZERO, Happening::Destination(DestinationEvent::Connected { version }));
        link.at(Duration::ZERO, Happening::GuestWrites);
        for fault in &scenario.faults {
            if let Some((when, happening)) = fault.scheduled() {
                link.at(when, happening);
            }
        }
        let nothing = PageSet::empty(guest.layout());
        Self {
            rng: Rng::new(scenario.seed),
            link,
            source: Source::new(
                config,
                MigrationRecord::default(),
                policy_for(scenario.mode),
                Duration::ZERO,
            ),
            destination: Destination::new(destination, MigrationRecord::default(), Duration::ZERO),
            destination_guest: FakeGuest::empty(guest.layout().clone()),
            source_guest: Some(guest),
            throttle: Throttle::default(),
            late: Late::new(scenario.seed),
            paused: None,
            destination_alive: true,
            committed: None,
            ever_ran_at_destination: false,
            messages: 0,
            leading: Leading::new(scenario.channels),
            following: Following::new(&nothing),
            generation: 0,
            outage_until: Duration::ZERO,
            stranded_since: None,
            scenario,
        }
    }

    /// Runs to the end of both sides.
    ///
    /// # Errors
    /// The law that was broken, or that it hangs.
    pub fn run(mut self) -> Result<Ending, String> {
        while !self.is_over() && !self.is_stranded() {
            self.step()?;
            if self.link.now > PATIENCE {
                return Err(format!("hangs: {:?}, {:?}", self.source, self.destination));
            }
        }
        let now = self.link.now;
        if self.source.state() == MigrationState::Completed && self.destination_alive {
            self.check_destination()?;
        }
        Ok(Ending {
            destination: self.destination.record(now),
            state: self.source.state(),
            record: self.source.record(now),
            source_guest: self.source_guest,
            runs_at_destination: self.destination_alive && self.destination_guest.is_running(),
            ever_ran_at_destination: self.ever_ran_at_destination,
            late_frames: self.late.delivered(),
        })
    }

    /// Whether pages follow a guest over a link that never comes back.
    fn is_stranded(&mut self) -> bool {
        let never = !self.destination_alive || self.outage_until == Duration::MAX;
        if !(never && self.source.state() == MigrationState::PostcopyPaused) {
            self.stranded_since = None;
            return false;
        }
        let since = *self.stranded_since.get_or_insert(self.link.now);
        self.link.now >= since + STRANDED
    }

    fn is_over(&self) -> bool {
        self.source.outcome().is_some() && self.destination_is_over()
    }

    fn destination_is_over(&self) -> bool {
        !self.destination_alive || self.destination.outcome().is_some()
    }

    fn step(&mut self) -> Result<(), String> {
        let timer = |deadline: Option<Duration>, now: Duration| deadline.map(|at| at.max(now));
        let source_timer = timer(self.source.deadline(), self.link.now);
        let destination_timer = match self.destination_alive {
            true => timer(self.destination.deadline(), self.link.now),
            false => None,
        };
        let next_timer = [source_timer, destination_timer].into_iter().flatten().min();
        match self.link.pop_before(next_timer) {
            Some(happening) => self.happen(happening)?,
            None => {
                let Some(at) = next_timer else { return Err("nothing will ever happen".into()) };
                self.link.now = at;
                if source_timer == Some(at) {
                    self.feed_source(SourceEvent::Tick)?;
                }
                if destination_timer == Some(at) {
                    self.feed_destination(DestinationEvent::Tick)?;
                }
            }
        }
        self.check()
    }

    /// What must hold at every moment.
    fn check(&self) -> Result<(), String> {
        let at_source = self.source_guest.as_ref().is_some_and(FakeGuest::is_running);
        let at_destination = self.destination_alive && self.destination_guest.is_running();
        if at_source && at_destination {
            return Err("two copies run".into());
        }
        if self.throttle.is_on() && self.source.state() != MigrationState::Precopy {
            return Err(format!("the guest is throttled in {}", self.source.state()));
        }
        if at_source && self.committed.is_some() && self.ever_ran_at_destination {
            return Err("the source runs a committed guest".into());
        }
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Source(event) => self.feed_source(event),
            Happening::Destination(event) if self.destination_alive => self.feed_destination(event),
            Happening::Destination(_) => Ok(()),
            Happening::Frame(channel, frame) => self.receive(channel, frame),
            Happening::ChannelFree(channel) => self.pull(channel),
            Happening::UrgentFree => self.pull_urgent(),
            Happening::Placed { generation, pages } if self.destination_alive => {
                self.end_placing(generation, &pages)
            }
            Happening::Touch(vcpu) if self.destination_alive => self.touch(vcpu),
            Happening::InPlace { generation, channel, pages } if self.destination_alive => {
                self.end_placing_before(generation, channel, &pages)
            }
            Happening::InPlace { .. } | Happening::Placed { .. } | Happening::Touch(_) => Ok(()),
            Happening::Reconnect => self.reconnect(),
            Happening::Notice { generation, end } => self.notice(generation, end),
            Happening::GuestWrites => {
                self.guest_writes();
                Ok(())
            }
            Happening::Cut => {
                self.cut();
                Ok(())
            }
            Happening::DestinationDies => {
                self.destination_dies();
                Ok(())
            }
            Happening::Question => self.answer_question(),
        }
    }

    /// The guest writes a few random pages now and then, as long as it runs anywhere.
    fn guest_writes(&mut self) {
        self.guest_writes_now();
        self.frames_arrive();
        let over = self.source.outcome().is_some();
        if !over {
            // Without a link nothing else happens, for up to seconds.
            let least = if self.link.is_up() { 200 } else { 10_000 };
            let pause = Duration::from_micros(least + self.rng.below(800));
            self.link.after(pause, Happening::GuestWrites);
        }
    }

    /// The copy that runs writes some pages; a copy that does not run writes none.
    fn guest_writes_now(&mut self) {
        let writes = self.throttle.allow(self.link.now, self.scenario.writes_per_tick);
        for _ in 0..writes {
            let block = BlockId(self.rng.below(2) as u16);
            let page = self.rng.below(self.destination_guest.layout().blocks()[block.index()].pages);
            match &mut self.source_guest {
                Some(guest) if guest.is_running() => guest.write(block, page),
                _ => self.write_at_destination(block, page),
            }
        }
    }

    /// The link goes down: what is in flight is lost from some point on, and both ends notice some time later.
    fn cut(&mut self) {
        self.link.cut(&mut self.rng);
        self.outage_until = self.outage_until.max(self.outage());
        for end in [End::Source, End::Destination, End::Source, End::Destination] {
            let delay = self.notice_delay();
            self.link.after(delay, Happening::Notice { generation: self.generation, end });
        }
    }

    fn notice(&mut self, generation: u64, end: End) -> Result<(), String> {
        match end {
            _ if generation != self.generation => Ok(()),
            End::Source => self.feed_source(SourceEvent::LinkLost("cut".into())),
            End::Destination if self.destination_alive => {
                self.feed_destination(DestinationEvent::LinkLost("cut".into()))
            }
            End::Destination => Ok(()),
        }
    }

    /// How long an end takes to notice a cut: at once, before what is in flight has arrived, or by a timeout.
    fn notice_delay(&mut self) -> Duration {
        let longest = if self.rng.below(2) == 0 { 1_000 } else { 6_000_000 };
        Duration::from_micros(self.rng.below(longest))
    }

    fn destination_dies(&mut self) {
        self.destination_alive = false;
        self.destination_guest.set_running(false);
        self.cut();
    }

    /// The source's question arrives at the destination, or at its daemon when the process is dead.
    fn answer_question(&mut self) -> Result<(), String> {
        if self.rng.below(4) == 0 {
            self.link.after(Duration::from_millis(1), Happening::Source(SourceEvent::Outcome(None)));
            return Ok(());
        }
        if self.destination_alive {
            return self.feed_destination(DestinationEvent::Resolve { epoch: EPOCH });
        }
        let outcome = match self.committed {
            Some(EPOCH) => CommitOutcome::Committed,
            _ => CommitOutcome::NeverRan,
        };
        self.link.after(Duration::from_millis(1), Happening::Source(SourceEvent::Outcome(Some(outcome))));
        Ok(())
    }
}
