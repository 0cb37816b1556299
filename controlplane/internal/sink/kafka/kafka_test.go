package kafka_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/sink"
	"bailiwick/controlplane/internal/sink/kafka"
	"bailiwick/shared/usage"
)

// replica applies what is proposed at once.
type replica struct {
	m     *ledger.Machine
	mu    sync.Mutex // covers index; held while one command is applied
	index uint64
}

func (r *replica) Propose(_ context.Context, cmd []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index++
	return r.m.Apply(r.index, time.Time{}, cmd)
}
func (r *replica) ReadIndex(context.Context) (uint64, error) { return r.m.Applied(), nil }
func (r *replica) WaitApplied(context.Context, uint64) error { return nil }

// reign is one node's turn as leader.
type reign struct{}

func (reign) RunLeader(ctx context.Context, work func(context.Context)) error {
	work(ctx)
	return nil
}

func newLedger(t *testing.T) *ledger.Ledger {
	t.Helper()
	m, err := ledger.OpenMachine(ledger.MachineConfig{Dir: filepath.Join(t.TempDir(), "ledger")})
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.New(ledger.Config{Machine: m, Replica: &replica{m: m}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		m.Close()
	})
	return l
}

// Whatever breaks between the ledger and the topic, brokers that refuse, connections that are cut after the write,
// partitions that move and leaders that change in the midst of a batch, every row is in the topic, and a reader that
// drops repetitions has exactly what the ledger has.
func TestSink_EveryRowIsThereWhateverBreaks(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(3), kfake.SeedTopics(4, "usage"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	var mu sync.Mutex // covers rng and broken
	rng := rand.New(rand.NewPCG(1, 2))
	broken := 0
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		switch rng.IntN(6) {
		case 0: // the connection dies, and the client cannot know what was written
			broken++
			return nil, errors.New("cut"), true
		case 1:
			broken++
			cluster.ShufflePartitionLeaders()
		}
		return nil, nil, false
	})

	l := newLedger(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.RegisterSinks(ctx, 1<<20, []string{"kafka:usage"}, nil); err != nil {
		t.Fatal(err)
	}

	// Leaders come and go, each with connections of its own.
	var wg sync.WaitGroup
	reigns := 0
	ended := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-ended:
				return
			default:
			}
			reigns++
			s, err := kafka.New(kafka.Config{Brokers: cluster.ListenAddrs(), Topic: "usage", Timeout: 5 * time.Second})
			if err != nil {
				t.Error(err)
				return
			}
			p, err := sink.New(sink.Config{Ledger: l, Leader: reign{}, Sinks: []sink.Sink{s}, Poll: 5 * time.Millisecond, Backoff: 10 * time.Millisecond, Batch: 2000})
			if err != nil {
				t.Error(err)
				return
			}
			turn, stop := context.WithTimeout(ctx, 300*time.Millisecond)
			p.Run(turn)
			stop()
			s.Close()
		}
	})

	const blocks, edges = 120, 3
	want := map[string]usage.Sums{}
	heads := [edges][32]byte{}
	for i := range blocks {
		e := i % edges
		name := fmt.Sprint("edge-", e)
		cells := map[usage.Cell]usage.Sums{}
		for route := range 3 {
			c := usage.Cell{Start: 900 * int64(i/10), Customer: fmt.Sprint("customer-", i%5), Subscription: "s", Plan: "gold", PlanRev: 1 << 60, Product: "core", API: "orders",
				Route: strconv.Itoa(route), Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west"}
			cells[c] = usage.Sums{Requests: int64(i), Units: 1<<53 + int64(i), BytesIn: 1, BytesOut: 2}
			want[c.Customer] = want[c.Customer].Add(cells[c])
		}
		b := ledger.Block{Block: usage.NewBlock(name, 1, uint64(i/edges+1), heads[e], usage.EncodePayload(cells)), Region: "eu-west"}
		heads[e] = b.Hash
		if acks, err := l.Append(ctx, b); err != nil || acks[0].Reason != "" {
			t.Fatalf("append: %+v, %v", acks, err)
		}
		time.Sleep(5 * time.Millisecond)
	}

	reader, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ConsumeTopics("usage"))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	seen := map[string]string{} // by edge/epoch/seq/row, its value
	newest := map[string]int{}  // by edge, the highest block that began
	records, rows := 0, 0
	for len(seen) < blocks*3 {
		fetches := reader.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("the topic holds %d rows of %d after a minute, %d reigns", len(seen), blocks*3, reigns)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			h := map[string]string{}
			for _, x := range r.Headers {
				h[x.Key] = string(x.Value)
			}
			id := h["edge"] + "/" + h["epoch"] + "/" + h["seq"] + "/" + h["row"]
			records++
			if was, again := seen[id]; again {
				if was != string(r.Value) {
					t.Errorf("%s: two values", id)
				}
				return
			}
			seen[id] = string(r.Value)
			rows++
			if string(r.Key) != h["edge"] || h["rows"] != "3" || len(h["hash"]) != 64 {
				t.Errorf("%s: got key %s and headers %v", id, r.Key, h)
			}
			seq, _ := strconv.Atoi(h["seq"])
			if seq < newest[h["edge"]] {
				t.Errorf("%s is new after block %d of its edge", id, newest[h["edge"]])
			}
			newest[h["edge"]] = seq
		})
	}
	close(ended)
	wg.Wait()
	got := map[string]usage.Sums{}
	for _, v := range seen {
		var row kafka.Row
		if err := json.Unmarshal([]byte(v), &row); err != nil {
			t.Fatal(err)
		}
		if row.PlanRev != 1<<60 || row.Outcome != "success" {
			t.Errorf("row: got %+v", row)
		}
		got[row.Customer] = got[row.Customer].Add(usage.Sums{Requests: row.Requests, Units: row.Units, BytesIn: row.BytesIn, BytesOut: row.BytesOut})
	}
	for customer, s := range want {
		if got[customer] != s {
			t.Errorf("%s: got %+v, want %+v", customer, got[customer], s)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d rows in %d records, %d reigns, %d failures of brokers", rows, records, reigns, broken)
	if broken < 5 || reigns < 3 {
		t.Errorf("got %d failures and %d reigns: too few to prove anything", broken, reigns)
	}
}

func TestParse(t *testing.T) {
	if c, err := kafka.Parse("a:1,b:2/usage"); err != nil || len(c.Brokers) != 2 || c.Topic != "usage" {
		t.Errorf("got %+v, %v", c, err)
	}
	for _, bad := range []string{"", "a:1", "/usage", "a:1,/usage", "a:1/"} {
		if _, err := kafka.Parse(bad); err == nil {
			t.Errorf("%q: got nil, want an error", bad)
		}
	}
}
