package main

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

const watched = `kind: Plan
name: watched
spec: {products: [commerce], quota: {units: 100000000, mode: strict}}
---
kind: Customer
name: watched
spec: {zone: emea, subscriptions: [{plan: watched}]}
`

var rest = regexp.MustCompile(`"quota";r=(\d+)`)

// told: from the answer of a request at one edge to the first answer of another region's edge whose RateLimit
// header has counted it. Both belong to one quota; the asking itself spends units of it, which the asked edge
// knows by itself.
func (b *bench) told(samples int) {
	file := filepath.Join(b.t.TempDir(), "watched.yaml")
	if err := os.WriteFile(file, []byte(watched), 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.s.MustCLI("emea", "apply", "--now", "--reason", "a bench", "-f", file)
	_, key := b.s.NewKey("emea", "watched", "watched")
	var units int64 // spent everywhere
	spend := func(region string) (left int64) {
		for from := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			a := b.s.Get(region, key)
			if a.Err == nil && a.Status == http.StatusOK {
				units++
				m := rest.FindStringSubmatch(a.Header.Get("RateLimit"))
				if m == nil {
					b.t.Fatalf("%s says %q, which names no quota", region, a.Header.Get("RateLimit"))
				}
				left, _ = strconv.ParseInt(m[1], 10, 64)
				return left
			}
			if time.Since(from) > 10*time.Second {
				b.t.Fatalf("a request at %s is not answered: %d %v", region, a.Status, a.Err)
			}
		}
	}
	const limit = 100000000
	spend("eu-central")
	var took []time.Duration
	for i := range samples {
		spend("eu-west")
		from := time.Now()
		for left := int64(limit); left > limit-units; {
			if time.Since(from) > 20*time.Second {
				b.t.Fatalf("eu-central says that %d are left, and %d were spent", left, units)
			}
			time.Sleep(5 * time.Millisecond)
			left = spend("eu-central")
		}
		took = append(took, time.Since(from))
		time.Sleep(time.Duration(37+61*i%283) * time.Millisecond)
	}
	b.latency("request → counted in another edge's quota", took, 250*time.Millisecond)
}
