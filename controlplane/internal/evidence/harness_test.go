package evidence

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/checkpoint"
)

// history writes a zone's transactions as its store would tell them.
type history struct {
	t     testing.TB
	key   ed25519.PrivateKey
	dir   string
	log   *Log
	kv    map[string]group.KV
	index uint64
	at    time.Time
	chain map[string]model.RelayMinute
	rows  map[uint64][][]byte // by entry, of eu-west-edge-1
	told  []model.RelayMinute
	every int64           // records between two states
	txns  [][]group.Event // all of them, to tell them again
	epoch uint64
	store *snapshot // what the store says, where that matters
}

func keyOf(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

// nowhere stands for a store that is asked for nothing but what it holds now: at.
type nowhere struct {
	group.Store
	at *snapshot
}

func (nowhere) Name() string { return "store/emea" }

func (n nowhere) Local() group.Snapshot {
	if n.at == nil {
		return &snapshot{}
	}
	return n.at
}

type snapshot struct {
	group.Snapshot
	rev group.Revision
	kv  map[string]group.KV
}

func (s *snapshot) Revision() group.Revision { return s.rev }
func (s *snapshot) Get(key string) (group.KV, bool) {
	kv, ok := s.kv[key]
	return kv, ok
}
func (s *snapshot) List(prefix string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		for _, key := range slices.Sorted(maps.Keys(s.kv)) {
			if strings.HasPrefix(key, prefix) && !yield(s.kv[key]) {
				return
			}
		}
	}
}

func (h *history) open() *Log {
	h.t.Helper()
	l, err := New(Config{Zone: "emea", Dir: h.dir, Store: nowhere{at: h.store}, Signer: h.key, Mask: []byte("0123456789abcdef"), Logger: slog.New(slog.DiscardHandler),
		Peers: func(context.Context, int64) (Piece, error) { return Piece{}, nil }, stateEvery: h.every, segmentRecords: 4 * h.every})
	if err != nil {
		h.t.Fatal(err)
	}
	return l
}

func newHistory(t testing.TB) *history { return newHistoryWith(t, 64) }

func newHistoryWith(t testing.TB, every int64) *history {
	h := &history{t: t, epoch: 7, every: every, key: keyOf("emea"), dir: t.TempDir(), kv: map[string]group.KV{}, at: time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC), chain: map[string]model.RelayMinute{}, rows: map[uint64][][]byte{}}
	h.log = h.open()
	t.Cleanup(func() { h.log.file.Close() })
	return h
}

type op struct {
	key   string
	value any // nil: delete
}

func (h *history) txn(ops ...op) {
	h.t.Helper()
	h.index++
	h.at = h.at.Add(time.Second)
	var events []group.Event
	for _, o := range ops {
		e := group.Event{Index: h.index, Time: h.at, KV: group.KV{Key: o.key, ModIndex: h.index}}
		if old, ok := h.kv[o.key]; ok {
			e.Prev = &old
		}
		if o.value == nil {
			e.Delete = true
			delete(h.kv, o.key)
		} else {
			e.KV.Value = model.Encode(o.value)
			h.kv[o.key] = e.KV
		}
		events = append(events, e)
	}
	h.txns = append(h.txns, events)
	if err := h.log.transaction(events, h.epoch); err != nil {
		h.t.Fatal(err)
	}
}

func (h *history) head() {
	h.t.Helper()
	root, err := h.log.tree.root(h.log.tree.size)
	if err != nil {
		h.t.Fatal(err)
	}
	note, err := checkpoint.Sign(h.key, checkpoint.Checkpoint{Zone: "emea", Size: h.log.tree.size, Root: root, At: h.at})
	if err != nil {
		h.t.Fatal(err)
	}
	h.txn(op{model.KeyCheckpoint, model.Checkpoint{Note: string(note), Size: h.log.tree.size, Through: h.index}})
}

var rulesV1 = model.Adopted{CatalogEpoch: 3, CatalogIndex: 11,
	Regions:  []model.Region{{Name: "eu-central", Zone: "emea"}, {Name: "eu-west", Zone: "emea"}, {Name: "us-east", Zone: "us"}},
	Bases:    []model.LegalBasis{{Name: "gdpr", Kind: "same-law", Status: "active"}},
	Policies: []model.Policy{{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}}}}

var (
	westCentral = model.PermittedPair{Policy: "gdpr-emea", From: "eu-west", To: "eu-central", Basis: "gdpr"}
	centralWest = model.PermittedPair{Policy: "gdpr-emea", From: "eu-central", To: "eu-west", Basis: "gdpr"}
)

func (h *history) grant(relays ...int64) {
	h.t.Helper()
	id := fmt.Sprintf("g%d", h.index+1)
	g := model.GrantRecord{Edge: "eu-west-edge-1", Region: "eu-west", GrantedAt: h.at.Add(time.Second),
		Grants: []model.Granted{{ID: id, From: "eu-west", To: "eu-central", Policies: []string{"gdpr-emea"}, TTLMS: 3600_000}}}
	for _, n := range relays {
		last := h.chain[g.Edge]
		d, seq := checkpoint.NewDigest(), last.Seq+1
		for i := range n {
			row := checkpoint.Row{At: h.at.Add(time.Duration(i) * time.Microsecond), RequestID: fmt.Sprintf("r%d-%d", seq, i), Grant: id, From: "eu-west", To: "eu-central"}.Append(nil)
			h.rows[seq] = append(h.rows[seq], row)
			d.Add(row)
		}
		m := model.RelayMinute{Epoch: 1, Seq: seq, Minute: h.at.Truncate(time.Minute), Grant: id, From: "eu-west", To: "eu-central", Count: n, Prev: last.Digest, Digest: d.Sum(last.Digest)}
		h.told = append(h.told, m)
		h.chain[g.Edge] = m
		g.Relays = append(g.Relays, m)
	}
	h.txn(op{model.PrefixGrant + g.Edge, g})
}

// rules adopts and permits; close shuts west to central with all its records; reopen opens it again.
func (h *history) rules() {
	h.txn(op{model.KeyAdopted, rulesV1})
	h.txn(op{model.KeyPermitted, model.Permitted{Pairs: []model.PermittedPair{centralWest, westCentral}}})
}

func (h *history) pending() (string, model.InForce) {
	f := model.InForce{Policy: "gdpr-emea", From: "eu-west", To: "eu-central", Why: "no longer permitted; it rested on gdpr", ZoneEpoch: 7, ZoneIndex: h.index + 1, CommittedAt: h.at}
	return fmt.Sprintf("%s%020d/gdpr-emea/eu-west>eu-central", model.PrefixInForce, f.ZoneIndex), f
}

func (h *history) close() {
	h.txn(op{model.KeyAudit, model.Audit{Operator: "alice", Call: "apply", RequestSHA256: "c1"}},
		op{model.PrefixClosure + "stop", model.Closure{Name: "stop", Zone: "emea", From: "eu-west", To: "eu-central", Reason: "drill"}})
	key, f := h.pending()
	h.txn(op{model.KeyPermitted, model.Permitted{Pairs: []model.PermittedPair{centralWest}}}, op{key, f})
	f.At, f.By = h.at.Add(500*time.Millisecond), "senders"
	f.Signature = ed25519.Sign(h.key, append([]byte("bailiwick-in-force/1\n"), model.Encode(f)...))
	h.txn(op{key, f})
}

func (h *history) reopen() {
	h.txn(op{model.PrefixClosure + "stop", nil})
	h.txn(op{model.KeyPermitted, model.Permitted{Pairs: []model.PermittedPair{centralWest, westCentral}}})
}

func (h *history) write(name string) {
	h.txn(op{model.KeyAudit, model.Audit{Operator: "bob", Call: "apply", RequestSHA256: "c2"}}, op{model.PrefixCustomer + name, model.Customer{Name: name, Zone: "emea"}})
}

// day is a history that has every kind of record but a state and a withdrawal.
func day(t testing.TB) *history {
	h := newHistory(t)
	h.rules()
	h.write("acme")
	h.grant()
	h.head()
	h.grant(3, 4)
	h.close()
	h.head()
	h.reopen()
	h.grant(5)
	h.head()
	return h
}

func (h *history) export() []byte {
	h.t.Helper()
	var b bytes.Buffer
	if err := h.exportTo(&b, h.at.Add(-24*time.Hour), h.at.Add(time.Hour)); err != nil {
		h.t.Fatal(err)
	}
	return b.Bytes()
}

func (h *history) exportTo(w io.Writer, from, to time.Time) error {
	x, err := h.log.NewExport("emea-1", "", from, to, nil)
	if err != nil {
		return err
	}
	return x.WriteTo(w, 0)
}

// heads are all that were committed, oldest first.
func (h *history) heads() (out []head) {
	h.t.Helper()
	err := h.log.scan(h.log.segments, 0, func(tag byte, _ int64, body []byte) error {
		if tag != tagHead {
			return nil
		}
		c, err := checkpoint.Open("emea", h.log.key, body)
		out = append(out, head{bytes.Clone(body), c})
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

func (h *history) trust() Trust { return Trust{Zone: "emea", Key: h.key.Public().(ed25519.PublicKey)} }

// bundle is an exported file taken apart, for forgers.
type bundle struct {
	heading heading
	records [][]byte
	ending  ending
}

func apart(t testing.TB, file []byte) *bundle {
	t.Helper()
	lines := bytes.Split(bytes.TrimSuffix(file, []byte("\n")), []byte("\n"))
	b := &bundle{records: lines[1 : len(lines)-2]}
	if err := json.Unmarshal(lines[0], &b.heading); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(lines[len(lines)-2], &b.ending); err != nil {
		t.Fatal(err)
	}
	return b
}

// together signs it with whoever's key. resign also signs all heads anew over what the records are now, which only the
// zone itself could do.
func (b *bundle) together(t testing.TB, key ed25519.PrivateKey, resign bool) []byte {
	t.Helper()
	b.heading.Size = b.heading.First + int64(len(b.records))
	if resign {
		b.heading.Key = key.Public().(ed25519.PublicKey)
		c := &climber{size: 0}
		for _, r := range b.records {
			c.add(r)
		}
		note, err := checkpoint.Sign(key, checkpoint.Checkpoint{Zone: "emea", Size: c.size, Root: c.root(), At: b.heading.Exported})
		if err != nil {
			t.Fatal(err)
		}
		b.ending.Heads = []string{string(note)}
	}
	var out bytes.Buffer
	h, _ := json.Marshal(b.heading)
	e, _ := json.Marshal(b.ending)
	for _, l := range append(append([][]byte{h}, b.records...), e) {
		out.Write(append(bytes.Clone(l), '\n'))
	}
	sum := sha256.Sum256(out.Bytes())
	sig := ed25519.Sign(key, append([]byte(signedText), sum[:]...))
	fmt.Fprintf(&out, "%s%s\n", signaturePrefix, base64.StdEncoding.EncodeToString(sig))
	return out.Bytes()
}
