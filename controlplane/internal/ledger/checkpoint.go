package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	pebbledb "github.com/cockroachdb/pebble/v2"

	"bailiwick/shared/fault"
)

// Nodes must hold one state at one index. A checkpoint entry makes every node
// keep a snapshot of its state at exactly that index and hash it beside its
// work. The leader compares (Audit) and, when a majority of the group's members
// has one hash, says it in the log: a node whose own differs condemns itself.
// So nobody is stopped by another's word, only by its own hash.

// checkpoints is what a node has hashed and has yet to hash.
type checkpoints struct {
	signal chan struct{} // a new one waits; buffered

	mu       sync.Mutex // covers the rest; never held while hashing
	waiting  *checkpoint
	sums     map[uint64][32]byte // of the newest keptSums
	order    []uint64
	verdicts map[uint64][32]byte // that came before their hash
}

type checkpoint struct {
	index uint64
	snap  *pebbledb.Snapshot
	g     *generation
}

const (
	keptSums = 8
	// hashSlice is read at once, then the hasher rests as long as it took: half a core at most, and a disk that
	// others can use.
	hashSlice = 1 << 20
)

func newCheckpoints() checkpoints {
	return checkpoints{signal: make(chan struct{}, 1), sums: make(map[uint64][32]byte), verdicts: make(map[uint64][32]byte)}
}

// checkpointOrder marks an index.
type checkpointOrder struct{ atMS int64 }

func encodeCheckpoint(at time.Time) []byte {
	return binary.AppendUvarint(begin(kindCheckpoint), uint64(max(at.UnixMilli(), 0)))
}

func decodeCheckpoint(r *reader) order { return checkpointOrder{r.int64()} }

func (o checkpointOrder) apply(t *tx) ([]byte, error) {
	t.then = func() { t.m.offer(t.index) }
	return binary.AppendUvarint([]byte{resultVersion}, t.index), nil
}

// offer captures the state as it is now, after entry index. Only the newest waits.
func (m *Machine) offer(index uint64) {
	g, err := m.acquire()
	if err != nil {
		return
	}
	cp := &checkpoint{index, g.db.NewSnapshot(), g}
	m.checks.mu.Lock()
	old := m.checks.waiting
	m.checks.waiting = cp
	m.checks.mu.Unlock()
	m.drop(old)
	select {
	case m.checks.signal <- struct{}{}:
	default:
	}
}

func (m *Machine) drop(cp *checkpoint) {
	if cp == nil {
		return
	}
	if err := cp.snap.Close(); err != nil {
		m.logger.Error("ledger checkpoint does not close", "error", err)
	}
	m.release(cp.g)
}

func (m *Machine) takeWaiting() *checkpoint {
	m.checks.mu.Lock()
	defer m.checks.mu.Unlock()
	cp := m.checks.waiting
	m.checks.waiting = nil
	return cp
}

// HashCheckpoints hashes what checkpoints capture, until ctx ends.
func (m *Machine) HashCheckpoints(ctx context.Context) error {
	for {
		select {
		case <-m.checks.signal:
		case <-ctx.Done():
			m.drop(m.takeWaiting())
			return nil
		}
		cp := m.takeWaiting()
		if cp == nil {
			continue
		}
		sum, err := m.hashSlowly(ctx, cp)
		m.drop(cp)
		switch {
		case errors.Is(err, errReplaced) || ctx.Err() != nil:
		case err != nil:
			m.die(fmt.Errorf("hash the ledger at index %d: %w", cp.index, err)) // it cannot be read
		default:
			m.hashed(cp.index, sum)
		}
	}
}

var errReplaced = errors.New("the database was replaced or closed")

func (m *Machine) hashSlowly(ctx context.Context, cp *checkpoint) (sum [32]byte, err error) {
	defer guard(&err, "hash ledger")
	h := sha256.New()
	n, began := 0, time.Now()
	err = scan(cp.snap, nil, nil, func(k, v []byte) error {
		hashPair(h, k, v)
		if n += len(k) + len(v); n < hashSlice {
			return nil
		}
		rest := time.NewTimer(time.Since(began))
		defer rest.Stop()
		select {
		case <-rest.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		n, began = 0, time.Now()
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.cur != cp.g { // somebody waits for us to let go
			return errReplaced
		}
		return nil
	})
	return [32]byte(h.Sum(nil)), err
}

func (m *Machine) hashed(index uint64, sum [32]byte) {
	m.checks.mu.Lock()
	m.checks.sums[index] = sum
	m.checks.order = append(m.checks.order, index)
	if len(m.checks.order) > keptSums {
		delete(m.checks.sums, m.checks.order[0])
		m.checks.order = m.checks.order[1:]
	}
	want, judged := m.checks.verdicts[index]
	for at := range m.checks.verdicts { // older ones will not be needed any more
		if at <= index {
			delete(m.checks.verdicts, at)
		}
	}
	m.checks.mu.Unlock()
	if judged && want != sum {
		m.condemn(index, sum, want)
	}
}

// CheckpointSum is this node's hash of a checkpoint, of the newest it has for index 0; ok is false while it has none.
func (m *Machine) CheckpointSum(index uint64) (at uint64, sum [32]byte, ok bool) {
	m.checks.mu.Lock()
	defer m.checks.mu.Unlock()
	if n := len(m.checks.order); index == 0 && n > 0 {
		index = m.checks.order[n-1]
	}
	sum, ok = m.checks.sums[index]
	return index, sum, ok
}

// verdictOrder is the hash that a majority of the members has of a checkpoint. It changes no state.
type verdictOrder struct {
	index uint64
	sum   [32]byte
}

func encodeVerdict(index uint64, sum [32]byte) []byte {
	return append(binary.AppendUvarint(begin(kindVerdict), index), sum[:]...)
}

func decodeVerdict(r *reader) order { return verdictOrder{r.uvarint(), [32]byte(r.take(32))} }

func (o verdictOrder) apply(t *tx) ([]byte, error) {
	t.then = func() {
		m := t.m
		m.checks.mu.Lock()
		own, ok := m.checks.sums[o.index]
		if !ok {
			if len(m.checks.verdicts) >= keptSums {
				clear(m.checks.verdicts)
			}
			m.checks.verdicts[o.index] = o.sum
		}
		m.checks.mu.Unlock()
		if ok && own != o.sum {
			m.condemn(o.index, own, o.sum)
		}
	}
	return []byte{resultVersion}, nil
}

// condemnedName is a file that keeps a node from serving a state that it knows to be false.
const condemnedName = "condemned"

func errCondemned(index string) error {
	return fault.New(fault.Internal, "LEDGER_DIFFERS", "the ledger of this node differs from that of the majority of its group, found at index %s: "+
		"its disk or memory is not sound: wipe this node's ledger and let it rejoin under a new name; the others have everything", index)
}

// condemn stops this node for good: its state is not the group's.
func (m *Machine) condemn(index uint64, own, want [32]byte) {
	m.logger.Error("the ledger of this node differs from the majority's", "index", index, "sum", fmt.Sprintf("%x", own), "majority", fmt.Sprintf("%x", want))
	err := errCondemned(fmt.Sprint(index))
	m.die(errors.Join(err, m.mark(fmt.Sprint(index))))
}

func (m *Machine) mark(index string) error {
	f, err := m.cfg.fs.Create(m.path(condemnedName), "unspecified")
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(index + "\n"))
	return errors.Join(err, f.Sync(), f.Close(), m.syncDir(m.cfg.Dir))
}
