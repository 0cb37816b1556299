package evidence

import (
	"cmp"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/approval"
	"bailiwick/controlplane/internal/border"
	"bailiwick/controlplane/internal/model"
	"bailiwick/regions"
)

const (
	// settle is how long the leader may take between reading the rules and logging what it made of them: the limit of
	// a step of the border, which is also longer than that of a request for grants.
	settle = 5 * time.Second
	// skew is what clocks of edges and leaders may differ by before a minute of relays looks out of place.
	skew = time.Minute
	// remember is for how long after its end a grant can be looked up when an edge tells late of relays under it.
	remember = 26 * time.Hour
	// afterlife is for how long after its end a grant is part of a state.
	afterlife = 10 * time.Minute
)

type pairKey struct{ policy, from, to string }

func (p pairKey) String() string { return p.from + " to " + p.to + " under policy " + p.policy }

// rules are one version of what a zone permits.
type rules struct {
	set      *regions.Set
	closures []regions.Closure
	until    time.Time // zero: it still is
}

// given is a grant as it was logged.
type given struct {
	ID    string    `json:"id"`
	Edge  string    `json:"edge"`
	From  string    `json:"from"`
	To    string    `json:"to"`
	At    time.Time `json:"at"`
	TTLMS int64     `json:"ttl_ms"`
}

func (g given) end() time.Time {
	return g.At.Add(time.Duration(g.TTLMS)*time.Millisecond*51/50 + time.Second)
}

// chain is where the digests of one edge's relays stand.
type chain struct {
	Edge   string `json:"edge"`
	Epoch  int64  `json:"epoch"`
	Seq    uint64 `json:"seq"`
	Digest []byte `json:"digest"`
}

// replay follows a log record by record and judges each by those before it. It is the whole of what verification
// means by right, and how a node knows what a state has to say.
type replay struct {
	zone string
	key  ed25519.PublicKey

	begin     time.Time // the state it began with; zero: the log's first record
	begun     bool
	adopted   *model.Adopted
	set       *regions.Set
	closures  map[string]model.Closure
	crossing  *model.Crossing
	reborn    bool              // a recovery was told of
	seen      model.CatalogSeen // without its writes
	asRules   []regions.Closure
	permitted *model.Permitted
	base      map[pairKey]bool
	pending   map[string]bool
	grants    map[string]given
	chains    map[string]chain
	regions   map[string]model.RegionState
	earlier   []rules // versions that ended less than settle ago, oldest first

	epoch, index uint64
	at           time.Time
	lost         map[pairKey]bool // pairs that the transaction in hand closed, without their in-force record yet
}

func newReplay(zone string, key ed25519.PublicKey) *replay {
	return &replay{zone: zone, key: key, closures: map[string]model.Closure{}, base: map[pairKey]bool{}, pending: map[string]bool{},
		grants: map[string]given{}, chains: map[string]chain{}, regions: map[string]model.RegionState{}, lost: map[pairKey]bool{}}
}

// problems collects what is wrong with one record.
type problems []string

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Sprintf(format, args...)) }

// apply takes the next record. What it says is wrong concerns this record, or the transaction before it.
func (w *replay) apply(r entry) (wrong problems) {
	if r.Epoch < w.epoch || r.Epoch == w.epoch && r.Index < w.index {
		wrong.add("transaction %d.%d follows %d.%d: records are out of order", r.Epoch, r.Index, w.epoch, w.index)
	}
	if r.At.Before(w.at) {
		wrong.add("its time %s lies before that of the record before it", r.At.Format(time.RFC3339Nano))
	}
	if r.Epoch != w.epoch || r.Index != w.index {
		wrong = append(wrong, w.finish()...)
	}
	first := !w.begun
	if !first && r.Epoch > w.epoch { // a recovery: it closes what crosses zones
		w.at = r.At
		w.change()
	}
	w.begun, w.epoch, w.index, w.at = true, max(w.epoch, r.Epoch), r.Index, r.At
	if r.err != nil {
		wrong.add("%v", r.err)
		return wrong
	}
	var err error
	switch r.Kind {
	case KindState:
		err = w.state(r, first, &wrong)
	case KindRecovery:
		w.recovered(r, &wrong)
	case KindAdopted:
		err = w.adopt(r, &wrong)
	case KindClosure, KindReopened:
		w.closure(r, &wrong)
	case KindCrossing:
		w.cross(r, &wrong)
	case KindCatalog:
		w.catalog(r, &wrong)
	case KindProposal:
		w.proposal(r, &wrong)
	case KindRegion:
		s := r.value.(model.RegionState)
		if s.Region != r.Key || s.At.After(r.At.Add(skew)) || s.At.Before(r.At.Add(-settle-skew)) {
			wrong.add("the state of region %s at %s stands under the name %s at %s", s.Region, s.At.Format(time.RFC3339), r.Key, r.At.Format(time.RFC3339))
		}
		w.regions[r.Key] = s
	case KindDrain, KindUndrain:
		if d := r.value.(model.Drain); d.Name != r.Key || r.By == nil {
			wrong.add("the drain of region %s stands under the name %s, or nobody made it", d.Name, r.Key)
		}
	case KindPermitted:
		w.permit(r, &wrong)
	case KindInForce, KindWithdrawn:
		w.inForce(r, &wrong)
	case KindGrant:
		w.grant(r, &wrong)
	case KindRead:
		if v := r.value.(model.Read); v.Procedure == "" || r.By == nil {
			wrong.add("data of customers was read by nobody, or by no call")
		}
	case KindWrite:
		if r.Key == "" || r.Name == "" || r.Before == "" && r.After == "" {
			wrong.add("a change that names nothing")
		}
	default:
		wrong.add("kind %q is unknown: a newer bailiwick may know it", r.Kind)
	}
	if err != nil {
		wrong.add("%v", err)
	}
	return wrong
}

// finish ends a transaction: what it closed must have become a tightening in it.
func (w *replay) finish() (wrong problems) {
	for _, p := range slices.SortedFunc(maps.Keys(w.lost), comparePairs) {
		wrong.add("transaction %d.%d took the permission of %s away without an in-force record", w.epoch, w.index, p)
	}
	clear(w.lost)
	return wrong
}

func comparePairs(a, b pairKey) int {
	return cmp.Or(cmp.Compare(a.policy, b.policy), cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
}

// change puts what holds now among the earlier versions, before it changes.
func (w *replay) change() {
	if w.set != nil {
		w.earlier = append(w.earlier, rules{w.set, w.closed(), w.at})
	}
	w.asRules = nil
	w.earlier = slices.DeleteFunc(w.earlier, func(r rules) bool { return w.at.Sub(r.until) > settle })
}

// closed are the closures as rules; made anew when one changes.
func (w *replay) closed() []regions.Closure {
	if w.asRules != nil {
		return w.asRules
	}
	var stored []model.Closure
	for _, name := range slices.Sorted(maps.Keys(w.closures)) {
		stored = append(stored, w.closures[name])
	}
	var a model.Adopted
	if w.adopted != nil {
		a = *w.adopted
	}
	w.asRules = model.Closures(stored, w.crossing, a, w.epoch)
	return w.asRules
}

// permits re-derives a decision: some version of the rules in force within settle before now must allow it.
func (w *replay) permits(p pairKey) (regions.Decision, bool) {
	d := w.set.Permits(p.policy, p.from, p.to, regions.DefaultClass, w.at, w.closed())
	if d.OK {
		return d, true
	}
	// A basis ends by the clock, a little before the leader's word of it is logged.
	if e := w.set.Permits(p.policy, p.from, p.to, regions.DefaultClass, w.at.Add(-settle), w.closed()); e.OK {
		return e, true
	}
	for _, v := range w.earlier {
		if w.at.Sub(v.until) <= settle {
			if e := v.set.Permits(p.policy, p.from, p.to, regions.DefaultClass, v.until, v.closures); e.OK {
				return e, true
			}
		}
	}
	return d, false
}

// recovered checks the word on a recovery: it can only be written by who holds the zone's key.
func (w *replay) recovered(r entry, wrong *problems) {
	v := r.value.(model.Recovery)
	w.reborn = true
	switch {
	case v.Zone != w.zone:
		wrong.add("a recovery of zone %s stands in the log of zone %s", v.Zone, w.zone)
	case len(w.key) != ed25519.PublicKeySize || !ed25519.Verify(w.key, v.Statement(), v.Signature):
		wrong.add("the record of the recovery on %s is not signed by the zone", v.Node)
	case v.Operator == "" || v.Reason == "":
		wrong.add("the recovery on %s names no operator and no reason", v.Node)
	}
}

func (w *replay) adopt(r entry, wrong *problems) error {
	a := r.value.(model.Adopted)
	if w.adopted != nil && (a.CatalogEpoch < w.adopted.CatalogEpoch || a.CatalogEpoch == w.adopted.CatalogEpoch && a.CatalogIndex < w.adopted.CatalogIndex) {
		wrong.add("catalog %d.%d is adopted after %d.%d: never backwards", a.CatalogEpoch, a.CatalogIndex, w.adopted.CatalogEpoch, w.adopted.CatalogIndex)
	}
	set, err := a.Compile()
	if err != nil {
		return fmt.Errorf("the adopted rules do not compile: %w", err)
	}
	w.change()
	w.adopted, w.set = &a, set
	return nil
}

func (w *replay) closure(r entry, wrong *problems) {
	c := r.value.(model.Closure)
	if c.Name != r.Key || c.Zone != w.zone {
		wrong.add("closure %s of zone %s stands under the name %s in zone %s", c.Name, c.Zone, r.Key, w.zone)
	}
	w.change()
	if r.Kind == KindClosure {
		w.closures[r.Key] = c
		return
	}
	if was, ok := w.closures[r.Key]; !ok || string(model.Encode(was)) != string(model.Encode(c)) {
		wrong.add("closure %s is reopened as it never was", r.Key)
	}
	delete(w.closures, r.Key)
}

func (w *replay) cross(r entry, wrong *problems) {
	c := r.value.(model.Crossing)
	if c.StoreEpoch > r.Epoch || w.adopted != nil && c.CatalogEpoch > w.adopted.CatalogEpoch {
		wrong.add("pairs that cross zones are approved under epochs that are not there yet")
	}
	was := w.crossing
	if was == nil && w.reborn { // what the store went back to is of before its first approval
		was = &model.Crossing{}
	}
	if was != nil && r.By == nil && (c.CatalogEpoch > was.CatalogEpoch || c.StoreEpoch > was.StoreEpoch) {
		wrong.add("pairs that cross zones are approved after a recovery, and by nobody")
	}
	w.change()
	w.crossing = &c
}

// proposal judges a record by itself: it says who proposed and who decided, and a decision is another's and names what
// it decides.
func (w *replay) proposal(r entry, wrong *problems) {
	p := r.value.(model.Proposal)
	if p.ID != r.Key || p.Zone != w.zone || approval.ID(p.Zone, p.Docs, p.Base) != p.ID {
		wrong.add("proposal %s does not say what its name stands for", r.Key)
	}
	by := ""
	if r.By != nil {
		by = r.By.Operator
	}
	switch p.Status {
	case model.ProposalPending:
		if p.By == "" || p.By != by {
			wrong.add("proposal %s is said to be %s's and was written by %s", r.Key, p.By, by)
		}
	case model.ProposalApproved, model.ProposalDone:
		if p.DecidedBy == "" || strings.EqualFold(p.DecidedBy, p.By) || p.Status == model.ProposalApproved && p.DecidedBy != by {
			wrong.add("proposal %s of %s is approved by %s", r.Key, p.By, cmp.Or(p.DecidedBy, "nobody"))
		}
		if p.DecidedAt.After(p.Expires) {
			wrong.add("proposal %s was approved after it had ended", r.Key)
		}
	case model.ProposalRejected:
		if p.DecidedBy == "" || p.DecidedBy != by {
			wrong.add("proposal %s is rejected by %s", r.Key, cmp.Or(p.DecidedBy, "nobody"))
		}
	default:
		wrong.add("proposal %s is %q", r.Key, p.Status)
	}
}

func (w *replay) permit(r entry, wrong *problems) {
	p := r.value.(model.Permitted)
	next := map[pairKey]bool{}
	for _, x := range p.Pairs {
		k := pairKey{x.Policy, x.From, x.To}
		next[k] = true
		if d, ok := w.permits(k); !ok {
			wrong.add("%s is taken for permitted, and is not: %s", k, d.Why())
		} else if d.Basis != x.Basis && d.OK {
			wrong.add("%s is said to rest on %s, and rests on %s", k, x.Basis, d.Basis)
		}
	}
	clear(w.lost)
	for k := range w.base {
		if !next[k] {
			w.lost[k] = true
		}
	}
	w.permitted, w.base = &p, next
}

func (w *replay) inForce(r entry, wrong *problems) {
	f := r.value.(model.InForce)
	k := pairKey{f.Policy, f.From, f.To}
	switch {
	case r.Kind == KindWithdrawn:
		if !w.pending[r.Key] {
			wrong.add("a tightening of %s is withdrawn that was not pending", k)
		}
		if !w.base[k] {
			wrong.add("the tightening of %s is withdrawn although the pair is not permitted again", k)
		}
		delete(w.pending, r.Key)
	case f.At.IsZero():
		if !w.lost[k] {
			wrong.add("a tightening of %s begins that took nothing away", k)
		}
		delete(w.lost, k)
		w.pending[r.Key] = true
	default:
		if !w.pending[r.Key] {
			wrong.add("a tightening of %s is in force that was not pending", k)
		}
		if w.base[k] {
			wrong.add("%s is said to be shut and is permitted", k)
		}
		if f.At.Before(f.CommittedAt) {
			wrong.add("the tightening of %s is in force before it was committed", k)
		}
		if !border.VerifyInForce(w.key, f) {
			wrong.add("the in-force record of %s is not signed by the zone", k)
		}
		delete(w.pending, r.Key)
	}
}

func (w *replay) grant(r entry, wrong *problems) {
	g := r.value.(model.GrantRecord)
	if g.Edge != r.Key {
		wrong.add("grants of edge %s stand under the name %s", g.Edge, r.Key)
	}
	if d := r.At.Sub(g.GrantedAt); len(g.Grants) > 0 && (d > settle+skew || d < -skew) {
		wrong.add("edge %s is granted at %s what is logged at %s", g.Edge, g.GrantedAt.Format(time.RFC3339), r.At.Format(time.RFC3339))
	}
	for _, x := range g.Grants {
		if x.From != g.Region {
			wrong.add("grant %s lets edge %s of %s relay from %s", x.ID, g.Edge, g.Region, x.From)
		}
		ttl := border.DefaultTTL
		offline := time.Duration(1<<62 - 1)
		for _, policy := range x.Policies {
			k := pairKey{policy, x.From, x.To}
			d, ok := w.permits(k)
			if !ok {
				wrong.add("grant %s carries %s, which is not permitted: %s", x.ID, k, d.Why())
			}
			if !w.base[k] {
				wrong.add("grant %s carries %s, which the zone had not taken for permitted", x.ID, k)
			}
			offline = min(offline, d.OfflineGrant)
		}
		if len(x.Policies) == 0 {
			wrong.add("grant %s rests on no policy", x.ID)
		} else if x.TTLMS > max(ttl, offline).Milliseconds() || x.TTLMS <= 0 {
			wrong.add("grant %s lasts %d ms, its policies allow %s", x.ID, x.TTLMS, max(ttl, offline))
		}
		if old, ok := w.grants[x.ID]; ok && (old.Edge != g.Edge || old.To != x.To) {
			wrong.add("grant %s is given twice", x.ID)
		}
		w.grants[x.ID] = given{ID: x.ID, Edge: g.Edge, From: x.From, To: x.To, At: g.GrantedAt, TTLMS: x.TTLMS}
	}
	for _, m := range g.Relays {
		w.relays(g.Edge, m, wrong)
	}
}

// relays judges an edge's word on one minute. An edge repeats what it does not know to have arrived.
func (w *replay) relays(edge string, m model.RelayMinute, wrong *problems) {
	was, known := w.chains[edge]
	what := fmt.Sprintf("%d relays of edge %s from %s to %s at %s", m.Count, edge, m.From, m.To, m.Minute.Format("2006-01-02T15:04Z"))
	switch {
	case known && m.Epoch == was.Epoch && m.Seq <= was.Seq:
		if m.Seq == was.Seq && string(m.Digest) != string(was.Digest) {
			wrong.add("%s: the edge tells entry %d of its rows in two ways", what, m.Seq)
		}
		return
	case known && m.Epoch == was.Epoch && (m.Seq != was.Seq+1 || string(m.Prev) != string(was.Digest)):
		wrong.add("%s: entry %d does not follow entry %d (%s)", what, m.Seq, was.Seq, short(was.Digest))
	case known && m.Epoch < was.Epoch:
		wrong.add("%s: they are of rows that the edge had left behind", what)
		return
	case m.Epoch != was.Epoch && m.Seq != 1 && w.begin.IsZero():
		wrong.add("%s: they are entry %d and none came before", what, m.Seq)
	}
	w.chains[edge] = chain{edge, m.Epoch, m.Seq, m.Digest}
	g, ok := w.grants[m.Grant]
	switch {
	case !ok && (w.begin.IsZero() || m.Minute.Add(-skew).After(w.begin)) && w.at.Sub(m.Minute) < remember:
		wrong.add("%s: there is no grant %s", what, m.Grant)
	case !ok: // given before the first record, or forgotten since
	case g.Edge != edge || g.From != m.From || g.To != m.To:
		wrong.add("%s: grant %s was for edge %s from %s to %s", what, m.Grant, g.Edge, g.From, g.To)
	case m.Minute.Add(time.Minute+skew).Before(g.At) || m.Minute.Add(-skew).After(g.end()):
		wrong.add("%s: grant %s held from %s to %s, or the edge's clock is wrong", what, m.Grant, g.At.Format(time.RFC3339), g.end().Format(time.RFC3339))
	}
	if m.Count <= 0 || len(m.Digest) != 32 {
		wrong.add("%s: no count or no digest", what)
	}
}

func short(b []byte) string { return hex.EncodeToString(b[:min(len(b), 4)]) }
