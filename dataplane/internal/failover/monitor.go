package failover

import (
	"context"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/upstream"
	"bailiwick/shared/table"
)

// Monitor knows this region's upstreams: which there are for an API, and how each is.
type Monitor struct {
	cfg   Config
	start time.Time

	mu      sync.RWMutex // covers targets and groups
	targets map[targetKey]*Target
	groups  map[groupKey]*group

	added  chan struct{}  // wakes Run: a target was asked for that has no prober yet
	probes sync.WaitGroup // probes under way
}

type (
	targetKey struct {
		zone, api string
		at        upstream.Place
	}
	groupKey struct{ zone, api string }
)

// group is the targets of one API.
type group struct {
	api     *policy.API // as of which targets are; another version of it is looked up anew
	targets []*Target   // replaced, never written to
	records []record    // what comparing them has come to; Run's alone
}

// New makes a Monitor; Run it.
func New(cfg Config) (*Monitor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Monitor{cfg: cfg, start: time.Now(), targets: map[targetKey]*Target{}, groups: map[groupKey]*group{}, added: make(chan struct{}, 1)}, nil
}

func (m *Monitor) now() time.Duration { return time.Since(m.start) }

// of are the targets of an API, in the order of its table. Do not write to the slice.
func (m *Monitor) of(api *policy.API) []*Target {
	key := groupKey{api.Zone, api.Name}
	m.mu.RLock()
	g := m.groups[key]
	m.mu.RUnlock()
	if g != nil && g.api == api {
		return g.targets
	}
	// The API changed a moment ago and Run has not looked yet, or the request is of before: what is shared is the targets.
	places := m.places(&api.API)
	m.mu.Lock()
	defer m.mu.Unlock()
	targets := m.gather(&api.API, places)
	if g == nil {
		m.groups[key] = &group{api: api, targets: targets}
	}
	return targets
}

// gather finds or makes targets, with mu held.
func (m *Monitor) gather(api *table.API, places []upstream.Place) []*Target {
	out := make([]*Target, 0, len(places))
	for _, at := range places {
		key := targetKey{api.Zone, api.Name, at}
		t := m.targets[key]
		if t == nil {
			t = m.make(api, at)
			m.targets[key] = t
			select {
			case m.added <- struct{}{}:
			default:
			}
		}
		out = append(out, t)
	}
	return out
}

// Has says whether a target is one of its API's still, by what its bytes rest on: where it is and how it is verified. That its
// name leads to other addresses too, or how many connections it takes, changes nothing for who is there.
func (m *Monitor) Has(t *Target) bool {
	is := func(at upstream.Place) upstream.Place {
		at.Pin, at.Protocol, at.Connections = netip.Addr{}, "", 0
		return at
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	g := m.groups[groupKey{t.zone, t.API}]
	return g != nil && slices.ContainsFunc(g.targets, func(o *Target) bool { return is(o.At) == is(t.At) })
}

// places are where an API's requests may go in this region: its URLs, or where it says so every address of their names.
// A name that nobody has resolved yet is one place, to be dialled by name.
func (m *Monitor) places(api *table.API) (out []upstream.Place) {
	t := m.cfg.Tables.Load()
	targets := api.Targets
	if found := t.Found(api); len(found) > 0 {
		targets = slices.Concat(targets, found)
	}
	for i, text := range targets {
		if slices.Contains(targets[:i], text) {
			continue
		}
		at := upstream.Place{Base: strings.TrimRight(text, "/"), TLS: api.TLS, Within: strings.Join(t.Settings().UpstreamNetworks, ",")}
		if api.Foreign {
			at.Zone = api.Zone
		}
		if at.Protocol = api.Protocols[text]; i >= len(api.Targets) {
			at.Protocol = speaks(api.Protocols[table.FoundTargets], text)
		}
		if at.Protocol != "" {
			at.Connections = api.Dispatch.MaxConnections
		}
		var addrs []netip.Addr
		if host := discovered(api, at.Base); host != "" && m.cfg.Names != nil {
			addrs = m.cfg.Names.Addrs(host)
		}
		if len(addrs) == 0 {
			out = append(out, at)
		}
		for _, a := range addrs {
			at.Pin = a
			out = append(out, at)
		}
	}
	return out
}

// speaks is a protocol if it goes with the URL of an upstream that was found: HTTP/2 with TLS is agreed on, without it is spoken
// at once.
func speaks(protocol, found string) string {
	if protocol == "h2" && strings.HasPrefix(found, "https://") || protocol == "h2c" && strings.HasPrefix(found, "http://") {
		return protocol
	}
	return ""
}

// discovered is the name to resolve in the background, "" if there is none.
func discovered(api *table.API, base string) string {
	if api.Dispatch.Discovery != "dns" {
		return ""
	}
	u, err := url.Parse(base)
	if err != nil {
		return ""
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		return ""
	}
	return upstream.Host(u)
}

func (m *Monitor) make(api *table.API, at upstream.Place) *Target {
	parsed, err := url.Parse(at.Base)
	if err != nil || parsed.Host == "" {
		parsed = nil
	}
	t := &Target{At: at, Base: parsed, API: api.Name, zone: api.Zone, m: m, health: healthPage(api, at.Base), line: m.lineOf(api), kick: make(chan struct{}, 1)}
	t.settings.Store(m.settings(api))
	t.lastByte.Store(-int64(time.Hour))
	return t
}

// lineOf is the line of an API's other targets, with mu held.
func (m *Monitor) lineOf(api *table.API) *line {
	for key, t := range m.targets {
		if key.zone == api.Zone && key.api == api.Name {
			return t.line
		}
	}
	return &line{}
}

func healthPage(api *table.API, base string) string {
	if api.HealthGRPC != nil {
		return base + "#" + *api.HealthGRPC // of grpc.health.v1, that service
	}
	path := api.HealthPath
	if path == "" {
		path = table.DefaultHealthPath
	}
	return base + "/" + strings.TrimLeft(path, "/")
}

// settings are the API's, where it says something, else the edge's.
func (m *Monitor) settings(api *table.API) *settings {
	s := &settings{interval: m.cfg.ProbeInterval, timeout: m.cfg.ProbeTimeout, timing: m.cfg.timing(), dispatch: api.Dispatch}
	if api.HealthInterval > 0 {
		s.interval = api.HealthInterval
	}
	if api.HealthTimeout > 0 {
		s.timeout = api.HealthTimeout
	}
	if api.HealthFailures > 0 {
		s.timing.EjectAfter = api.HealthFailures
	}
	if api.HealthGoodFor > 0 {
		s.timing.GoodFor = api.HealthGoodFor
	}
	return s
}

// Run probes until ctx ends: each target of the table by its interval, faster while one is in doubt. It also compares
// targets of one API with each other.
func (m *Monitor) Run(ctx context.Context) error {
	running := map[targetKey]context.CancelFunc{}
	var wg sync.WaitGroup
	defer func() {
		for _, stop := range running {
			stop()
		}
		wg.Wait()
		m.probes.Wait()
	}()
	compare := time.NewTicker(compareEvery)
	defer compare.Stop()
	for {
		changed := m.cfg.Tables.Changed()
		var names <-chan struct{}
		if m.cfg.Names != nil {
			names = m.cfg.Names.Changed()
		}
		gone := m.take(m.cfg.Tables.Load())
		for key, stop := range running {
			if gone[key] != nil {
				stop()
				delete(running, key)
			}
		}
		m.mu.RLock()
		for key, t := range m.targets {
			if running[key] == nil {
				pctx, stop := context.WithCancel(ctx)
				running[key] = stop
				wg.Go(func() { t.probe(pctx) })
			}
		}
		m.mu.RUnlock()
		// Outside the lock. Whoever is under way there ends as he is; nobody new comes.
		if m.cfg.Left != nil {
			for _, t := range gone {
				m.cfg.Left(t.At)
			}
		}
	wait:
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-compare.C:
				m.compare()
			case <-changed:
				break wait
			case <-names:
				break wait
			case <-m.added:
				break wait
			}
		}
	}
}

// take brings targets and groups to what the table has, and says which targets are gone.
func (m *Monitor) take(t *policy.Table) (gone map[targetKey]*Target) {
	apis := map[groupKey]*policy.API{}
	var hosts []string
	m.mu.RLock()
	for key := range m.groups {
		// APIs of other zones are known here only once a relay for them has come.
		if api := t.APIOf(key.zone, key.api); api != nil {
			apis[key] = api
		}
	}
	m.mu.RUnlock()
	for _, host := range t.Hosts() {
		api := t.API(host)
		apis[groupKey{api.Zone, api.Name}] = api
	}
	if m.cfg.Names != nil {
		for _, api := range apis {
			for _, text := range api.Targets {
				if host := discovered(&api.API, text); host != "" {
					hosts = append(hosts, host)
				}
			}
		}
		m.cfg.Names.Want(hosts)
	}
	places := map[groupKey][]upstream.Place{}
	for key, api := range apis {
		places[key] = m.places(&api.API)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	gone = map[targetKey]*Target{}
	want := map[targetKey]*policy.API{}
	for key, api := range apis {
		for _, at := range places[key] {
			want[targetKey{key.zone, key.api, at}] = api
		}
	}
	for key, target := range m.targets {
		api := want[key]
		// A changed health page is a new target: what was learnt of the old one was learnt from it.
		if api == nil || healthPage(&api.API, key.at.Base) != target.health {
			delete(m.targets, key)
			gone[key] = target
		}
	}
	for key := range m.groups {
		if apis[key] == nil {
			delete(m.groups, key)
		}
	}
	for key, api := range apis {
		old := m.groups[key]
		g := &group{api: api, targets: m.gather(&api.API, places[key])}
		s := m.settings(&api.API)
		for _, target := range g.targets {
			target.settings.Store(s)
		}
		if old != nil {
			g.records = keep(old, g)
			if s.dispatch.SlowStart > 0 {
				m.welcome(old, g)
			}
		}
		m.groups[key] = g
	}
	return gone
}

// welcome begins the slow start of targets that come beside others.
func (m *Monitor) welcome(old, now *group) {
	before := map[*Target]bool{}
	stays := false
	for _, t := range old.targets {
		before[t] = true
	}
	for _, t := range now.targets {
		stays = stays || before[t]
	}
	if !stays {
		return
	}
	for _, t := range now.targets {
		if !before[t] {
			t.joined.Store(int64(m.now()))
		}
	}
}

// Report is a target's health for people.
type Report struct {
	Zone, API, Target string
	Phase             string
	Outlier           bool // set aside because it fails more than the others
	Busy, Waiting     int64
	Latency           time.Duration
	Why               string        // why its last probe was bad; "": it was good, or there was none
	GoodFor           time.Duration // ejected: since when its probes are good without a break; 0: they are not
}

// Reports are all targets.
func (m *Monitor) Reports() []Report {
	m.mu.RLock()
	targets := make([]*Target, 0, len(m.targets))
	for _, t := range m.targets {
		targets = append(targets, t)
	}
	m.mu.RUnlock()
	out := make([]Report, 0, len(targets))
	for _, t := range targets {
		s := t.State()
		r := Report{Zone: t.zone, API: t.API, Target: t.name(), Phase: s.Phase.String(), Outlier: t.out.Load(), Busy: t.busy.Load(),
			Waiting: t.line.waiting(), Latency: time.Duration(t.ewma.Load()), Why: t.said()}
		if s.Phase == Ejected && s.Good {
			r.GoodFor = m.now() - max(s.GoodFor, s.Since)
		}
		out = append(out, r)
	}
	return out
}
