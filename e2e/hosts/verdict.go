package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"bailiwick/e2e/hosts/canary"
	"bailiwick/e2e/hosts/wire"
)

// report is what a run has seen.
type report struct {
	Findings  []string          `json:"findings"` // what crossed; none is the promise
	Problems  []string          `json:"problems"` // why the run would not prove anything
	Permitted map[string]uint64 `json:"permitted_packets"`
	Canaries  int               `json:"canaries"`
	Files     int               `json:"files"`
	Bytes     int64             `json:"bytes"`
	Streams   int               `json:"streams"`
	Opened    int               `json:"tls_opened"`
	Shut      map[string]int    `json:"tls_shut,omitempty"`
	Requests  int64             `json:"requests"`
	Good      int64             `json:"good"`
	Relayed   int64             `json:"relayed"`
	Others    map[string]int    `json:"others,omitempty"` // requests that were not answered, by why
}

// sightings collects what is found from several goroutines.
type sightings struct {
	mu    sync.Mutex // covers the rest
	all   []canary.Finding
	other []string
}

// tell adds what is no canary.
func (s *sightings) tell(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.other = append(s.other, text)
}

func (s *sightings) add(list ...canary.Finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, list...)
}

// scan looks for a zone's canaries on the disks and in the captures of hosts.
func (l *lab) scan(scanner *canary.Scanner, hosts []site, keys wire.Keys, r *report, into *sightings) error {
	for _, s := range hosts {
		found, total, err := scanner.Tree(l.disk(s.name))
		if err != nil {
			return err
		}
		into.add(found...)
		r.Files += total.Files
		r.Bytes += total.Bytes
		streams, err := wire.Read(filepath.Join(l.wire(), s.name+".pcap"))
		if err != nil {
			return err
		}
		back := map[string]wire.Stream{}
		for _, stream := range streams {
			back[stream.To.String()+stream.From.String()] = stream
		}
		for _, stream := range streams {
			where := fmt.Sprintf("the wire of %s, %s", s.name, stream)
			into.add(scanner.Bytes(where, stream.Data)...)
			r.Streams++
			r.Bytes += int64(len(stream.Data))
			if stream.Protocol != 6 || len(stream.Data) < 6 || stream.Data[0] != 22 || stream.Data[5] != 1 {
				continue // not where a client of TLS begins
			}
			server := back[stream.From.String()+stream.To.String()]
			said, heard, err := keys.Open(stream, server)
			switch {
			case err == nil:
				r.Opened++
			case errors.Is(err, wire.ErrNoSecret):
				r.Shut["secrets not written down"]++
				if len(keys) > 0 {
					r.Problems = append(r.Problems, where+": its secrets were not written down, so it stays shut")
				}
			case stream.Lost+server.Lost > 0:
				r.Shut["opened up to bytes that never came"]++
			default:
				r.Shut[err.Error()]++
			}
			if stream.From.Addr() == stranger.address() {
				said = wire.Plain{} // what the stranger himself brought
			}
			for who, plain := range map[string]wire.Plain{"client": said, "server": heard} {
				r.Bytes += int64(len(plain.Data) + len(plain.Messages))
				into.add(scanner.Bytes(where+", opened, TLS's own, the "+who, plain.Messages)...)
				into.add(scanner.Bytes(where+", opened, the "+who, plain.Data)...)
				for _, piece := range wire.HTTP2(plain.Data) {
					into.add(scanner.Bytes(where+", opened, HTTP/2, the "+who, piece)...)
				}
			}
		}
	}
	return nil
}

func hostsOf(zone int) (list []site) {
	for _, s := range sites() {
		if s.zone == zone {
			list = append(list, s)
		}
	}
	return list
}

// verdict stops nothing: call it when all is down.
func (l *lab) verdict() (*report, error) {
	r := &report{Shut: map[string]int{}, Others: map[string]int{}}
	if err := l.fabric.Flush(); err != nil {
		r.Problems = append(r.Problems, err.Error())
	}
	crossed, permitted, err := l.crossed()
	if err != nil {
		return nil, err
	}
	r.Findings, r.Permitted = crossed, permitted
	for name, n := range permitted {
		if n == 0 {
			r.Problems = append(r.Problems, name+": no packet; the catalog did not cross, so what could have leaked with it had no way to")
		}
	}
	keys := wire.Keys{}
	for _, s := range sites() {
		if err := keys.ReadKeys(l.keyLog(s.name)); err != nil {
			return nil, err
		}
	}
	if err := keys.ReadKeys(l.keyLog("lab")); err != nil {
		return nil, err
	}
	for z := range zones {
		scanner, err := canary.New(l.secrets[z].list()...)
		if err != nil {
			return nil, err
		}
		r.Canaries += len(l.secrets[z].list())
		if err := l.scan(scanner, hostsOf(other(z)), keys, r, &l.seen); err != nil {
			return nil, err
		}
		if err := l.atHome(scanner, z, keys, r); err != nil {
			return nil, err
		}
	}
	told := map[string]bool{}
	l.seen.mu.Lock()
	defer l.seen.mu.Unlock()
	r.Findings = append(r.Findings, l.seen.other...)
	for _, f := range l.seen.all {
		if text := f.String(); !told[text] {
			told[text] = true
			r.Findings = append(r.Findings, text)
		}
	}
	sort.Strings(r.Findings)
	return r, nil
}

// atHome is the positive control of the search: what finds nothing abroad finds everything at home. And no page that
// a process shows to whoever watches it may hold a canary, not even at home.
func (l *lab) atHome(scanner *canary.Scanner, zone int, keys wire.Keys, r *report) error {
	home := &report{Shut: map[string]int{}}
	var seen sightings
	if err := l.scan(scanner, hostsOf(zone), keys, home, &seen); err != nil {
		return err
	}
	places := map[string][]string{}
	for _, f := range seen.all {
		places[f.Canary] = append(places[f.Canary], f.Where)
		if strings.Contains(f.Where, string(filepath.Separator)+"page-") {
			l.seen.add(f)
		}
	}
	want := func(name, in string) {
		full := zones[zone].name + "'s " + name
		for _, place := range places[full] {
			if strings.Contains(place, in) {
				return
			}
		}
		r.Problems = append(r.Problems, fmt.Sprintf("%s is not found at home in %s: not finding it elsewhere proves nothing", full, in))
	}
	for _, name := range carried {
		want(name, "the wire of orders-")
	}
	for _, name := range stored {
		want(name, "disks"+string(filepath.Separator)+zones[zone].name+"-")
	}
	want("host asked", "the wire of "+zones[zone].serving[0]+"-edge")
	want("key secret", "screen")
	want(zoneKey, "zone.key")
	return nil
}
