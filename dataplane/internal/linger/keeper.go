package linger

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/quota"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/usage"
)

// KeeperConfig describes a Keeper. All but what is of relays are required.
type KeeperConfig struct {
	Conn   net.Conn
	Append func(*usage.Row) error // of the spool
	Sublet *quota.Sublet
	Fresh  func() time.Time // when a control node last confirmed the table; zero: not known

	// Lend is what this process may lend the other's relays; false: nothing yet, and they go by what is their own. nil: nothing ever.
	Lend  func(now time.Time) (grant.Lent, bool)
	Since grant.At   // the table in force here: nothing is lent to who has an older one
	Heard func(Heed) // takes what the other says of its relays; nil: nobody does

	Logger *slog.Logger
}

// Keeper is the newer process's end: it owns what the older one's requests count in.
type Keeper struct {
	cfg  KeeperConfig
	wire wire
	gone chan struct{} // closed when the other process is gone

	left   atomic.Int64
	before atomic.Int64
	rows   atomic.Int64
	lost   atomic.Int64 // packets

	lending lending
	wake    chan struct{}
	packets chan []byte

	mu     sync.Mutex // covers the rest
	queue  []*syncv1.Signed
	behind int
	orders []ending // that have not been sent
	ended  bool     // it was told to end
	cut    error
}

// NewKeeper makes a Keeper; Run must run.
func NewKeeper(cfg KeeperConfig) *Keeper {
	return &Keeper{cfg: cfg, lending: lending{need: cfg.Since}, wire: newWire(cfg.Conn), gone: make(chan struct{}), wake: make(chan struct{}, 1), packets: make(chan []byte, packetsMax)}
}

// Gone is closed when the other process is gone, and what it held is taken back.
func (k *Keeper) Gone() <-chan struct{} { return k.gone }

// Connections is how many the other process has, as it last said.
func (k *Keeper) Connections() int64 { return k.left.Load() }

// Before is how many processes linger: that one, and those behind it.
func (k *Keeper) Before() int { return 1 + int(k.before.Load()) }

// Relays is how many are under way in the other process and behind it; false: it has not said. Of one that is gone without a last word
// there are some for as long as what was lent to it may last.
func (k *Keeper) Relays() (out, in int, known bool) {
	select {
	case <-k.gone:
		return k.lending.relays(true)
	default:
		return k.lending.relays(false)
	}
}

// Tighten returns when no relay goes on in the other process, or behind it, that a table in force here forbids: it has said that it
// has cut by one as new or has none, or all is over that was lent to it before (LentTime), gone or not. Relays that go by what is their own are not waited
// for: the zone waits for those.
func (k *Keeper) Tighten(at grant.At) { k.lending.tighten(at) }

// Rows is how many the other process had kept.
func (k *Keeper) Rows() int64 { return k.rows.Load() }

// Table hands on an update that is in force here. It waits for nothing.
func (k *Keeper) Table(parts []*syncv1.Signed) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range parts {
		k.behind += len(p.GetPayload())
		k.queue = append(k.queue, p)
	}
	if k.behind > maxBehind {
		k.cut = fmt.Errorf("it is %d bytes of tables behind", k.behind)
		k.queue, k.behind = nil, 0
	}
	k.rouse()
}

// Packet hands on a frame of package ferry. It waits for nothing, and keeps nothing of it.
func (k *Keeper) Packet(frame []byte) {
	select {
	case k.packets <- slices.Clone(frame):
	default:
		k.lost.Add(1)
	}
}

// End asks the other process to end what it has within a time, and waits until it is gone or ctx ends.
func (k *Keeper) End(ctx context.Context, within time.Duration) {
	k.Hurry(within)
	select {
	case <-k.gone:
	case <-ctx.Done():
		k.wire.Close()
		<-k.gone
	}
}

// Hurry asks it, and does not wait.
func (k *Keeper) Hurry(within time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.ended {
		k.ended, k.orders = true, append(k.orders, ending{Within: within})
		k.rouse()
	}
}

// HurryOldest has the oldest of the processes end that linger: the other, or one behind it.
func (k *Keeper) HurryOldest(within time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.ended && len(k.orders) < MostBefore {
		k.orders = append(k.orders, ending{Within: within, Oldest: true})
		k.rouse()
	}
}

func (k *Keeper) rouse() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run works until the other process is gone.
func (k *Keeper) Run() {
	defer close(k.gone)
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() { k.write(stop) })
	var asks sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	err := k.read(ctx, &asks)
	k.wire.Close()
	cancel()
	close(stop)
	asks.Wait()
	writer.Wait()
	k.mu.Lock()
	if k.cut != nil {
		err = k.cut
	}
	k.mu.Unlock()
	k.cfg.Sublet.End()
	k.left.Store(0)
	k.cfg.Logger.Info("the process before is gone", "rows", k.rows.Load(), "reason", err)
}

func (k *Keeper) read(ctx context.Context, asks *sync.WaitGroup) error {
	r := bufio.NewReaderSize(k.wire.Conn, 64<<10)
	room := make([]byte, 4<<10)
	for {
		kind, b, err := k.wire.receive(r, room)
		if err != nil {
			return err
		}
		switch kind {
		case frameRow:
			err = k.row(b)
		case frameAsk:
			q := &quota.Request{}
			if err = json.Unmarshal(b, q); err != nil {
				break
			}
			asks.Go(func() {
				states, err := k.cfg.Sublet.Exchange(ctx, q)
				if err == nil {
					err = k.wire.sendJSON(frameStates, states)
				}
				if err != nil && ctx.Err() == nil && !hungUp(err) {
					k.wire.Close()
				}
			})
		case frameHeed:
			h := &heed{}
			if err = json.Unmarshal(b, h); err == nil {
				err = k.heed(h)
			}
		case frameLeft:
			var n left
			if err = json.Unmarshal(b, &n); err == nil {
				k.left.Store(max(0, n.Connections))
				k.before.Store(int64(min(max(0, n.Before), MostBefore)))
			}
		}
		if err != nil && !hungUp(err) {
			return fmt.Errorf("read what it says: %w", err)
		}
	}
}

// heed answers what the other says of its relays, if there is anything to lend.
func (k *Keeper) heed(h *heed) error {
	h.Out, h.In = max(0, h.Out), max(0, h.In)
	may := k.lending.hear(h)
	if k.cfg.Heard != nil {
		k.cfg.Heard(Heed{h.Out, h.In, h.Cuts[:min(len(h.Cuts), maxTold)], h.Refused[:min(len(h.Refused), maxTold)]})
	}
	if !may || k.cfg.Lend == nil || h.Out+h.In == 0 {
		return nil
	}
	if l, ok := k.lending.lend(h, k.cfg.Lend); ok {
		return k.wire.sendJSON(frameLent, lent{h.N, l})
	}
	return nil
}

// row keeps one. Only what is in the spool is spent, and only what was answered so is counted there for the client's sake.
func (k *Keeper) row(b []byte) error {
	var m row
	if err := json.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	said := rowKept{N: m.N}
	if err := k.cfg.Append(&m.Row); err != nil {
		said.Error = err.Error()
	} else {
		k.rows.Add(1)
		k.cfg.Sublet.Spent(quota.ID{Customer: m.Row.Customer, Subscription: m.Row.Subscription}, m.Row.Period, m.Row.Units)
	}
	return k.wire.sendJSON(frameKept, said)
}

// write sends what does not answer anything.
func (k *Keeper) write(stop <-chan struct{}) {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		fresh := false
		select {
		case <-stop:
			return
		case p := <-k.packets:
			if k.wire.send(framePacket, p) != nil {
				return
			}
			continue
		case <-k.wake:
		case <-tick.C:
			fresh = true
		}
		k.mu.Lock()
		parts, cut, orders := k.queue, k.cut, k.orders
		k.queue, k.behind, k.orders = nil, 0, nil
		k.mu.Unlock()
		if cut != nil {
			k.wire.Close()
			return
		}
		for _, p := range parts {
			raw, err := proto.Marshal(p)
			if err == nil {
				err = k.wire.send(frameTable, raw)
			}
			if err != nil {
				if !hungUp(err) {
					k.wire.Close()
				}
				return
			}
		}
		for _, order := range orders {
			if k.wire.sendJSON(frameEnd, order) != nil {
				return
			}
		}
		if fresh {
			var b [8]byte
			if at := k.cfg.Fresh(); !at.IsZero() {
				binary.BigEndian.PutUint64(b[:], uint64(at.UnixMilli()))
			}
			if k.wire.send(frameFresh, b[:]) != nil {
				return
			}
		}
	}
}
