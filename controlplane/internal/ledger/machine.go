package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	pebbledb "github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"

	"bailiwick/shared/usage"
)

// MachineConfig says where a Machine lives.
type MachineConfig struct {
	Dir    string // required; of this ledger alone
	Logger *slog.Logger

	// OnFatal is called, once, when pebble cannot go on (disk full, failed
	// fsync, corruption): the program must fence the node and end. The goroutine
	// that met the fault may never return: pebble has no error to give there.
	OnFatal func(error)

	fs vfs.FS // nil: the disk
}

// Machine is the zone ledger's replicated state, for raftgroup.New.
type Machine struct {
	cfg     MachineConfig
	logger  *slog.Logger
	marker  *atomicfs.Marker // only the FSM goroutine
	applied atomic.Uint64
	forks   atomic.Int64 // epochs in quarantine
	kept    atomic.Int64 // bytes in the outbox
	lost    atomic.Int64 // blocks that sinks did not take in time
	fatal   sync.Once

	// What Apply works with belongs to the FSM goroutine. epochs mirrors every
	// e/ record; latest is the highest epoch of an edge that has begun.
	epochs  map[epochKey]*epoch
	latest  map[string]uint64
	askers  map[string]*asker   // every x/ record
	refused map[refusedKey]bool // which records there are
	closed  int64               // unix s: rows that finished before are late
	outbox  *outbox
	totals  map[string]usage.Sums // scratch of one Apply
	key     []byte                // scratch

	spending spending  // scratch of one block
	latency  latencies // scratch of one Apply

	checks checkpoints

	mu     sync.Mutex  // covers cur and broken, and the counts inside generations
	cur    *generation // nil: closed
	broken error       // why nothing is applied any more
	idle   *sync.Cond  // a generation's count fell to zero
}

// OpenMachine opens the ledger in cfg.Dir, or begins one. Damage is an error.
func OpenMachine(cfg MachineConfig) (m *Machine, err error) {
	if cfg.Dir == "" {
		return nil, errors.New("ledger config: Dir is required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.fs == nil {
		cfg.fs = privateFS{vfs.Default}
	}
	m = &Machine{cfg: cfg, logger: cfg.Logger, checks: newCheckpoints(), totals: make(map[string]usage.Sums), latency: make(latencies)}
	m.cfg.fs = watchedFS{cfg.fs, m.die}
	m.idle = sync.NewCond(&m.mu)
	m.spending.init()
	defer guard(&err, "open ledger")
	if err := m.open(); err != nil {
		return nil, fmt.Errorf("open ledger %s: %w", cfg.Dir, err)
	}
	return m, nil
}

// guard turns a panic into an error: pebble panics on some damage, and a node
// must stop in order, fenced, with the reason in its log.
func guard(err *error, what string) {
	if p := recover(); p != nil {
		*err = errors.Join(*err, fmt.Errorf("%s: panic: %v\n%s", what, p, debug.Stack()))
	}
}

// load reads what Apply keeps in memory.
func (m *Machine) load(db *pebbledb.DB) error {
	m.forks.Store(0)
	m.epochs, m.latest = make(map[epochKey]*epoch), make(map[string]uint64)
	applied, err := readApplied(db)
	if err != nil {
		return err
	}
	err = scan(db, []byte(prefixEpoch), upper([]byte(prefixEpoch)), func(k, v []byte) error {
		key, err := decodeEpochKey(k)
		if err != nil {
			return err
		}
		e, err := decodeEpoch(v)
		if err != nil {
			return err
		}
		m.epochs[key] = e
		m.begin(key, e)
		if e.quarantined() {
			m.forks.Add(1)
		}
		return nil
	})
	if err == nil {
		err = errors.Join(m.loadAskers(db), m.loadRefused(db), m.loadClosed(db), m.loadOutbox(db))
	}
	m.applied.Store(applied)
	return err
}

func (m *Machine) begin(k epochKey, e *epoch) {
	if e.begun() {
		m.latest[k.edge] = max(m.latest[k.edge], k.epoch)
	}
}

// Applied is part of raftgroup.Machine: after a crash it may be lower than it
// was, never inconsistent with the cells; the raft log has the rest.
func (m *Machine) Applied() uint64 { return m.applied.Load() }

// Quarantined is how many epochs wait for an operator because two spools speak for each.
func (m *Machine) Quarantined() int64 { return m.forks.Load() }

// OutboxBytes is what the outbox holds for sinks that have not acknowledged it.
func (m *Machine) OutboxBytes() int64 { return m.kept.Load() }

// SinksLost is how many blocks the outbox gave up before a sink had taken them, over all sinks registered now.
func (m *Machine) SinksLost() int64 { return m.lost.Load() }

// Commands is part of raftgroup.Versioned. Version 2 is the oldest that all members of a zone are taken to know: programs
// before it do not say what they know.
func (m *Machine) Commands() (oldest, newest uint32) { return 2, commandVersion }

// Version is part of raftgroup.Versioned.
func (m *Machine) Version(cmd []byte) uint32 {
	if len(cmd) == 0 {
		return 0 // Check refuses it
	}
	return uint32(cmd[0])
}

// Check is part of raftgroup.Checker.
func (m *Machine) Check(cmd []byte) error {
	_, _, err := decodeCommand(cmd)
	return err
}

// Apply is part of raftgroup.Machine. Cells, watermarks and the applied index
// go into one batch. It is not synced: the raft log is, and replays above
// Applied. Entries at or below Applied change nothing and have no result.
func (m *Machine) Apply(index uint64, _ time.Time, cmd []byte) (out []byte, err error) {
	if index <= m.applied.Load() {
		return nil, nil
	}
	g, err := m.acquire()
	if err != nil {
		return nil, err
	}
	defer m.release(g)
	defer func() {
		if err != nil {
			m.breakWith(err) // memory may be ahead of the disk now
		}
	}()
	defer guard(&err, "apply to ledger")
	version, o, err := decodeCommand(cmd)
	if err != nil {
		return nil, err
	}
	t := tx{m: m, db: g.db, b: g.db.NewBatch(), index: index, version: version, changed: make(map[epochKey]*epoch)}
	defer t.b.Close()
	if out, err = o.apply(&t); err != nil {
		return nil, err
	}
	if err := t.commit(); err != nil {
		return nil, fmt.Errorf("commit entry %d: %w", index, err)
	}
	m.applied.Store(index)
	m.outbox.tell(m)
	if t.then != nil {
		t.then()
	}
	return out, nil
}

// breakWith makes every later Apply fail with err.
func (m *Machine) breakWith(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken == nil {
		m.broken = fmt.Errorf("the ledger stopped applying: %w", err)
	}
}

// die is for faults found where no caller can be told.
func (m *Machine) die(err error) {
	m.fatal.Do(func() {
		m.breakWith(err)
		m.logger.Error("ledger cannot go on", "error", err)
		if m.cfg.OnFatal != nil {
			m.cfg.OnFatal(err)
		}
	})
}

func readApplied(r pebbledb.Reader) (uint64, error) {
	v, closer, err := r.Get(keyApplied)
	if errors.Is(err, pebbledb.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read applied index: %w", err)
	}
	defer closer.Close()
	if len(v) != 8 {
		return 0, errors.New("read applied index: it is malformed")
	}
	return binary.BigEndian.Uint64(v), nil
}

// scan calls each with every key in [lo, hi), nil hi being the end.
func scan(r pebbledb.Reader, lo, hi []byte, each func(k, v []byte) error) error {
	it, err := r.NewIter(&pebbledb.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return err
	}
	for it.First(); it.Valid(); it.Next() {
		v, verr := it.ValueAndErr()
		if verr == nil {
			verr = each(it.Key(), v)
		}
		if verr != nil {
			return errors.Join(verr, it.Close())
		}
	}
	return errors.Join(it.Error(), it.Close())
}

// upper is the first key after all that start with prefix.
func upper(prefix []byte) []byte {
	out := append([]byte(nil), prefix...)
	for i := len(out) - 1; i >= 0; i-- {
		if out[i] < math.MaxUint8 {
			out[i]++
			return out[:i+1]
		}
	}
	return nil
}
