package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"bailiwick/e2e/hosts/canary"
)

// secrets are the canaries of a zone: what was planted there and may be nowhere in the other.
type secrets struct {
	zone int
	rng  *rand.Rand // before traffic starts, by one goroutine

	mu     sync.Mutex // covers all
	all    map[string][]byte
	key    string // of the customer
	strays string // a key that the stranger takes abroad
}

// Names of canaries that traffic carries: each must be found in the capture of an upstream at home.
var carried = []string{"request header", "cookie", "request body", "query", "path", "user agent", "response header", "response body", "error text"}

// Names of those that are stored: each must be found on a control node's disk at home.
var stored = []string{"customer name", "display name", "key id", "closure reason", "top-up reason", "correction reason", "webhook address"}

// Names of those that were there before anybody planted anything.
const (
	zoneKey = "zone key"
	nodeKey = "private key"
)

func newSecrets(zone int, seed uint64) *secrets {
	s := &secrets{zone: zone, rng: rand.New(rand.NewPCG(seed, uint64(zone))), all: map[string][]byte{}}
	for _, name := range carried {
		s.plant(name, s.word(false))
	}
	for _, name := range []string{"customer name", "webhook address", "host asked"} {
		s.plant(name, s.word(true))
	}
	for _, name := range []string{"display name", "closure reason", "top-up reason", "correction reason", "stray header", "stray body", "stray query"} {
		s.plant(name, s.word(false))
	}
	return s
}

// word is twenty random letters and digits, or such as a host name may have.
func (s *secrets) word(lower bool) string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	n := len(letters)
	if lower {
		n = 36
	}
	text := []byte{letters[s.rng.IntN(26)]}
	for len(text) < 20 {
		text = append(text, letters[s.rng.IntN(n)])
	}
	return string(text)
}

func (s *secrets) plant(name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[name] = []byte(value)
}

func (s *secrets) text(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.all[name]
	if !ok {
		panic("no canary is called " + name)
	}
	return string(v)
}

func (s *secrets) list() (all []canary.Canary) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, value := range s.all {
		all = append(all, canary.Canary{Name: zones[s.zone].name + "'s " + name, Value: value})
	}
	return all
}

// keep plants what the zone's nodes keep for themselves: the zone's key and every private key on its disks.
func (s *secrets) keep(l *lab) error {
	for _, host := range sites() {
		if host.zone != s.zone || host.kind != control && host.kind != edge {
			continue
		}
		err := filepath.WalkDir(filepath.Join(l.disk(host.name), "data"), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				return err
			}
			info, err := entry.Info()
			if err != nil || info.Size() > 1<<20 {
				return nil // a file that goes away, or none with keys
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			if entry.Name() == "zone.key" {
				raw, err := hex.DecodeString(string(text[:64]))
				if err != nil {
					return fmt.Errorf("read the key of zone %s: %w", zones[s.zone].name, err)
				}
				s.plant(zoneKey, string(raw))
			}
			for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
				if raw := private(block.Bytes); raw != nil {
					s.plant(fmt.Sprintf("%s %s/%s", nodeKey, host.name, entry.Name()), string(raw))
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	s.text(zoneKey)
	return nil
}

// private is what makes a private key one; nil: it is none.
func private(der []byte) []byte {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		switch k := key.(type) {
		case *ecdsa.PrivateKey:
			raw, _ := k.Bytes()
			return raw
		case ed25519.PrivateKey:
			return k.Seed()
		}
	}
	if k, err := x509.ParseECPrivateKey(der); err == nil {
		raw, _ := k.Bytes()
		return raw
	}
	return nil
}

// customers writes a zone's customer and mints his keys, as its operator would.
func (s *secrets) customers(ctx context.Context, l *lab) error {
	file := filepath.Join(l.disk(zones[s.zone].name+"-operator"), "customer.yaml")
	if err := os.WriteFile(file, []byte(customer(s.zone, s.text("customer name"), s.text("display name"))), 0o600); err != nil {
		return err
	}
	if _, err := l.cli(ctx, s.zone, "apply", "-f", file); err != nil {
		return err
	}
	for _, stray := range []bool{false, true} {
		out, err := l.cli(ctx, s.zone, "key", "create", "--customer", s.text("customer name"), "--plan", "soft", "-o", "json")
		if err != nil {
			return err
		}
		var made struct{ ID, Key string }
		if err := json.Unmarshal([]byte(out), &made); err != nil || len(made.Key) < canary.MinLength || len(made.ID) < canary.MinLength {
			return fmt.Errorf("key create printed no key: %v", err)
		}
		if stray {
			s.strays = made.Key
			s.plant("stray key", made.Key)
			s.plant("stray key's secret", secretOf(made.Key, made.ID))
			s.plant("stray key's id", made.ID)
			continue
		}
		s.key = made.Key
		s.plant("key", made.Key)
		s.plant("key secret", secretOf(made.Key, made.ID))
		s.plant("key id", made.ID)
	}
	return nil
}

func secretOf(key, id string) string {
	for i := 0; i+len(id) < len(key); i++ {
		if key[i:i+len(id)] == id {
			return key[i+len(id)+1:]
		}
	}
	return key
}

// reasons leaves free text wherever an operator may write some.
func (s *secrets) reasons(ctx context.Context, l *lab) error {
	plan, name := zones[s.zone], s.text("customer name")
	rows := filepath.Join(l.disk(plan.name+"-operator"), "rows.csv")
	cell := time.Now().UTC().Truncate(15 * time.Minute).Format(time.RFC3339)
	if err := os.WriteFile(rows, fmt.Appendf(nil, "cell,api,served_region,requests,units\n%s,orders,%s,3,3\n", cell, plan.serving[0]), 0o600); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"close", "--from", plan.serving[1], "--to", plan.serving[0], "--name", "for-a-moment", "--reason", s.text("closure reason")},
		{"reopen", "for-a-moment"},
		{"quota", "top-up", "--customer", name, "--units", "5", "--reason", s.text("top-up reason")},
		{"usage", "correct", "--customer", name, "-f", rows, "--reason", s.text("correction reason")},
		{"webhook", "create", "ops", "--zone", plan.name, "--url", "https://" + s.text("webhook address") + ".example.com/"},
	} {
		_, err := l.cli(ctx, s.zone, args...)
		// The first rows may still be on their way, and until they are there is nothing to correct.
		for end := time.Now().Add(30 * time.Second); err != nil && strings.Contains(err.Error(), "PERIOD_UNKNOWN") && time.Now().Before(end); {
			time.Sleep(100 * time.Millisecond)
			_, err = l.cli(ctx, s.zone, args...)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// look has a zone's operator look at everything that he may see, and keep it.
func (l *lab) look(ctx context.Context, zone int, mine *secrets) error {
	name := zones[zone].name
	for _, args := range [][]string{
		{"usage", "--all-zones", "-o", "json"},
		{"usage", "--customer", mine.text("customer name"), "--since", "1h", "-o", "json"},
		{"node", "list", "-o", "json"},
		{"border", "status"},
		{"get", "regions", "-o", "json"},
		{"get", "customers", "--zone", name, "-o", "json"},
		{"usage", "latency", "--zone", name},
		{"evidence", "export", "--zone", name, "--from", "24h", "-f", filepath.Join(l.disk(name+"-operator"), "evidence")},
		{"customer", "export", mine.text("customer name"), "-f", filepath.Join(l.disk(name+"-operator"), "customer.json")},
		{"explain", "--host", hostName(other(zone))},
	} {
		if _, err := l.cli(ctx, zone, args...); err != nil {
			return err
		}
	}
	for _, s := range sites() {
		if s.zone != zone || s.kind != control && s.kind != edge {
			continue
		}
		for _, path := range []string{"/metrics", "/readyz?verbose", "/healthz", "/debug/pprof/goroutine?debug=2", "/debug/vars"} {
			_, body, err := l.page(ctx, s, path)
			if err != nil {
				return fmt.Errorf("fetch %s of %s: %w", path, s.name, err)
			}
			if err := os.WriteFile(filepath.Join(l.disk(s.name), "page-"+hex.EncodeToString([]byte(path))), body, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}
