// Package observe owns an edge's verdict on the regions of its zone: which are up, by the word of several
// observers. Each edge asks every other one of its zone once a second, at the door that clients use, whether it
// takes requests and what it thinks of the others; Step makes a verdict of the answers.
//
// The verdict governs DNS, drains and reports. It never governs a relay: that the accepting edge decides alone,
// attempt by attempt (package failover). It crosses no border: only edges that the table names as of this zone
// are asked, and only they are answered. Nothing survives a crash: an edge starts by taking everybody for well,
// and knows better after two seconds. All exported methods may be called at once; Run once.
package observe

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/regions/answer"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
	"bailiwick/shared/table"
)

// Protocol is the ALPN name under which edges ask each other at their HTTPS doors.
const Protocol = "bailiwick-observe/1"

// Limits, each of which only a zone of hundreds of edges meets.
const (
	maxEdges   = 256     // asked; further ones, by name, are taken for well
	atOnce     = 64      // exchanges under way
	maxAnswer  = 1 << 16 // bytes
	exchangeIn = time.Second
)

// Config of an Observer.
type Config struct {
	Identity *identity.Source // required
	Self     identity.Name    // required
	Tables   *policy.Holder   // required
	Ready    func() bool      // required: whether this edge takes requests
	Logger   *slog.Logger     // required

	Every time.Duration // between rounds; 0: 1 s
	Ramp  time.Duration // over which a region that returns comes to its full share of DNS answers; 0: at once
}

// Validate fills in defaults.
func (c Config) Validate() (Config, error) {
	if c.Identity == nil || c.Tables == nil || c.Ready == nil || c.Logger == nil || c.Self.Node == "" {
		return c, errors.New("observe config: Identity, Self, Tables, Ready and Logger are required")
	}
	if c.Every == 0 {
		c.Every = time.Second
	}
	return c, nil
}

// Outlook is the verdict in force. It does not change once made.
type Outlook struct {
	Regions []Verdict         // by name
	Down    map[string]string // regions declared dead, with why
	Silent  map[string]bool   // edges that do not answer
	Held    bool              // more than half look dead: this edge distrusts itself

	ramp time.Duration
	back map[string]time.Time // since when regions return; the zero time: still drained when this edge last looked
}

// Shares are the regions that return at now, with their share of the answers in percent; nil: none does.
func (o *Outlook) Shares(now time.Time) map[string]int {
	var out map[string]int
	for region, from := range o.back {
		back := time.Duration(0) // a drain that has just ended is no more in the table, and not yet seen by a round
		if !from.IsZero() {
			back = now.Sub(from)
		}
		if back < o.ramp {
			if out == nil {
				out = map[string]int{}
			}
			out[region] = answer.Share(back, o.ramp)
		}
	}
	return out
}

// Verdict is the word on one region.
type Verdict struct {
	Region string
	Dead   bool
	Why    Why
	Since  time.Time
}

// Observer watches the other edges of the zone.
type Observer struct {
	cfg     Config
	began   time.Time
	outlook atomic.Pointer[Outlook]
	held    atomic.Int64 // how often the guard began to hold

	mu    sync.Mutex // covers state and since
	state State
	since map[string]time.Time // when each region's verdict last changed
}

// New makes an Observer; Run starts it.
func New(cfg Config) (*Observer, error) {
	cfg, err := cfg.Validate()
	if err != nil {
		return nil, err
	}
	o := &Observer{cfg: cfg, began: time.Now(), state: State{Self: cfg.Self.Node}, since: map[string]time.Time{}}
	o.outlook.Store(&Outlook{})
	return o, nil
}

// Outlook is the present verdict, never nil.
func (o *Observer) Outlook() *Outlook { return o.outlook.Load() }

// Holds counts how often more than half of the zone looked dead from here.
func (o *Observer) Holds() int64 { return o.held.Load() }

// Run asks around until ctx ends.
func (o *Observer) Run(ctx context.Context) error {
	tick := time.NewTicker(o.cfg.Every)
	defer tick.Stop()
	for {
		o.round(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// round asks everybody once. Who does not answer holds it up for a second at most, or for as many as there are
// silent edges to each atOnce.
func (o *Observer) round(ctx context.Context) {
	doors := o.doors()
	roster, drained := map[string]string{o.cfg.Self.Node: o.cfg.Self.Region}, map[string]bool{}
	for _, r := range o.cfg.Tables.Load().Regions() {
		drained[r.Name] = r.Drain != ""
	}
	for _, d := range doors {
		roster[d.Edge] = d.Region
	}
	o.step(Event{Roster: roster, Drained: drained})
	o.step(Event{Probed: &Probe{Edge: o.cfg.Self.Node, OK: o.cfg.Ready()}})
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for _, d := range doors {
		if d.Edge == o.cfg.Self.Node {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			w, err := o.ask(ctx, d)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				o.cfg.Logger.Debug("edge does not answer", "edge", d.Edge, "error", err)
			}
			o.step(Event{Probed: &Probe{Edge: d.Edge, OK: err == nil, Says: w.Up, Dead: w.Dead}})
		})
	}
	wg.Wait()
}

// doors are those of this zone, by name.
func (o *Observer) doors() []table.Doors {
	var out []table.Doors
	for _, d := range o.cfg.Tables.Load().Doors() {
		if d.Zone == o.cfg.Self.Zone && len(d.Addresses) > 0 && len(out) < maxEdges {
			out = append(out, d)
		}
	}
	return out
}

// step brings the state on, tells what changed, and puts the outlook in force.
func (o *Observer) step(e Event) {
	o.mu.Lock()
	e.At = time.Since(o.began)
	next, effects := Step(o.state, e)
	o.state = next
	now := time.Now()
	out := &Outlook{Down: map[string]string{}, Silent: map[string]bool{}, Held: next.Held, ramp: o.cfg.Ramp, back: map[string]time.Time{}}
	for _, f := range effects {
		if f.Region != "" {
			o.since[f.Region] = now
		}
	}
	maps.DeleteFunc(o.since, func(region string, _ time.Time) bool { _, known := next.Regions[region]; return !known })
	for _, name := range slices.Sorted(maps.Keys(next.Regions)) {
		r := next.Regions[name]
		out.Regions = append(out.Regions, Verdict{Region: name, Dead: r.Dead, Why: r.Why, Since: o.since[name]})
		if r.Dead {
			out.Down[name] = r.Why.String()
		}
		switch {
		case r.Drained:
			out.back[name] = time.Time{}
		case r.Back >= 0 && e.At-r.Back < o.cfg.Ramp:
			out.back[name] = o.began.Add(r.Back)
		}
	}
	for _, name := range next.silent() {
		out.Silent[name] = true
	}
	o.outlook.Store(out)
	o.mu.Unlock()
	for _, f := range effects {
		switch {
		case f.Region == "" && f.Held:
			o.held.Add(1)
			o.cfg.Logger.Error("more than half of the zone's regions look dead from here: no further one is declared dead, look at this edge's own network")
		case f.Region == "":
			o.cfg.Logger.Info("the zone's regions are seen again")
		case f.Dead:
			o.cfg.Logger.Warn("region declared dead: DNS leaves it out", "region", f.Region, "why", f.Why)
		default:
			o.cfg.Logger.Info("region is back: DNS names it again", "region", f.Region, "why", f.Why)
		}
	}
}

// word is what one edge tells another.
type word struct {
	Ready bool            `json:"ready"`
	Up    map[string]bool `json:"up"`   // as it sees the regions itself
	Dead  []string        `json:"dead"` // as it has judged with the others
}

// ask connects to an edge's public door as a client would, but with this edge's own certificate.
func (o *Observer) ask(ctx context.Context, d table.Doors) (w word, err error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeIn)
	defer cancel()
	dialer := tls.Dialer{Config: o.cfg.Identity.ClientTLS([]string{Protocol}, identity.Only(identity.Edge, o.cfg.Self.Zone, d.Edge))}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(d.Addresses[0], strconv.Itoa(d.HTTPSPort)))
	if err != nil {
		return word{}, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return word{}, err
	}
	return hear(conn)
}

// hear reads what an edge says. Without an error it takes requests.
func hear(from io.Reader) (w word, err error) {
	data, err := io.ReadAll(io.LimitReader(from, maxAnswer))
	if err != nil {
		return word{}, fmt.Errorf("read answer: %w", err)
	}
	if err := json.Unmarshal(data, &w); err != nil {
		return word{}, fmt.Errorf("decode answer: %w", err)
	}
	if !w.Ready {
		return word{}, errors.New("it takes no requests")
	}
	return w, nil
}

// Attach lets other edges ask at a door. Whoever offers Protocol and nothing else in the handshake meets this
// edge's node certificate and must show one; everybody else meets the door as it was. Call it before the server
// serves.
func (o *Observer) Attach(server *http.Server) {
	node := o.cfg.Identity.ServerTLS([]string{Protocol}, o.admit)
	former := server.TLSConfig.GetConfigForClient
	server.TLSConfig = server.TLSConfig.Clone()
	server.TLSConfig.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		switch {
		case len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == Protocol:
			return node.GetConfigForClient(hello)
		case former != nil:
			return former(hello)
		}
		return nil, nil
	}
	if server.TLSNextProto == nil {
		server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	server.TLSNextProto[Protocol] = func(_ *http.Server, conn *tls.Conn, _ http.Handler) { o.answer(conn) }
}

// admit lets edges in that the table names as of this zone.
func (o *Observer) admit(n identity.Name) error {
	if n.Kind == identity.Edge && n.Zone == o.cfg.Self.Zone {
		for _, d := range o.cfg.Tables.Load().Doors() {
			if d.Edge == n.Node && d.Region == n.Region {
				return nil
			}
		}
	}
	return fault.New(fault.Denied, identity.ReasonWrongPeer, "%s is no edge of zone %s that this edge knows", n, o.cfg.Self.Zone)
}

func (o *Observer) answer(conn *tls.Conn) {
	defer conn.Close()
	o.mu.Lock()
	w := word{Up: o.state.Opinions()}
	for name, r := range o.state.Regions {
		if r.Dead {
			w.Dead = append(w.Dead, name)
		}
	}
	o.mu.Unlock()
	w.Ready = o.cfg.Ready()
	data, err := json.Marshal(w)
	if err != nil {
		return
	}
	if conn.SetDeadline(time.Now().Add(exchangeIn)) == nil {
		_, _ = conn.Write(data) // an asker that is gone asks again
	}
}
