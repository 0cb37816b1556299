package scenario_test

import (
	"crypto/rand"
	"encoding/json"
	"hash/crc32"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/e2e/harness"
	"bailiwick/shared/apikey"
)

// requests: who is served, who is limited and who is refused, and that a refused request reaches no upstream. They are
// POSTs, which no edge tries twice: an upstream has each that passed once. On a machine on which the upstream at home is
// late the pair answers, as it may; that home serves at home is waited for first.
func requests(t *testing.T, s *harness.Sandbox) {
	comesHome(t, s, s.Key("emea", "unlimited"), "eu-west", "eu-central")
	both := []string{"eu-west", "eu-central"}
	before := s.Count("eu-west") + s.Count("eu-central")
	passed := int64(0)
	gold := s.Key("emea", "gold")
	post := func(key string) harness.Answer {
		return s.Do("eu-west", http.MethodPost, ordersEMEA, "/v1/orders", key, nil)
	}

	for name, header := range map[string][2]string{"X-API-Key": {"X-API-Key", gold}, "Bearer": {"Authorization", "Bearer " + gold}} {
		request, err := http.NewRequest(http.MethodPost, "https://"+ordersEMEA+"/v1/orders?x=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set(header[0], header[1])
		response, err := s.Client(s.HTTPS("eu-west")).Do(request)
		if err != nil {
			t.Fatalf("gold key as %s: %v", name, err)
		}
		var seen struct {
			API, Region, Path string
			Headers           map[string]string
		}
		err = json.NewDecoder(response.Body).Decode(&seen)
		response.Body.Close()
		passed++
		if response.StatusCode != http.StatusOK || err != nil {
			t.Fatalf("gold key as %s: status %d, %v, want 200", name, response.StatusCode, err)
		}
		for header, want := range map[string]string{"Bailiwick-Edge": "eu-west", "Bailiwick-Served": seen.Region} {
			if got := response.Header.Get(header); got != want {
				t.Errorf("gold key as %s: %s is %q, want %q", name, header, got, want)
			}
		}
		if response.Header.Get("Bailiwick-Request-Id") == "" {
			t.Errorf("gold key as %s: no Bailiwick-Request-Id", name)
		}
		if !slices.Contains(both, seen.Region) || seen.API != "orders" || seen.Path != "/v1/orders" {
			t.Errorf("gold key as %s: the upstream was %+v, want orders in emea at /v1/orders", name, seen)
		}
		for k, v := range seen.Headers {
			if strings.Contains(v, gold) {
				t.Errorf("gold key as %s: the upstream saw the key in header %s", name, k)
			}
		}
		if seen.Headers["Bailiwick-Plan"] != "gold" || seen.Headers["Bailiwick-Customer"] == "" {
			t.Errorf("gold key as %s: the upstream was told plan %q of customer %q, want gold of somebody", name, seen.Headers["Bailiwick-Plan"], seen.Headers["Bailiwick-Customer"])
		}
		if len(seen.Headers) == 0 {
			t.Error("the upstream told of no header: that the key stays here was not checked")
		}
	}
	if err := ok(s.Do("eu-west", http.MethodPost, reportsEMEA, "/", gold, nil), both...); err != nil {
		t.Errorf("gold on reports: %v", err)
	}
	passed++

	free := s.Key("emea", "free")
	if err := refused(s.Do("eu-west", http.MethodPost, reportsEMEA, "/", free, nil), 403, "not-entitled"); err != nil {
		t.Errorf("free on reports: %v", err)
	}
	passed += limited(t, func() harness.Answer { return post(free) })

	for _, c := range badKeys(t, gold) {
		if err := refused(post(c.key), 401, c.reason); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	foreign := post(s.Key("us", "gold"))
	if err := refused(foreign, 421, "key-foreign"); err != nil {
		t.Errorf("us key at an emea edge: %v", err)
	}
	if hosts := foreign.Problem().Hosts; !slices.Contains(hosts, ordersUS) {
		t.Errorf("us key at an emea edge: hosts are %v, want %s among them", hosts, ordersUS)
	}
	if got := foreign.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("us key at an emea edge: Cache-Control is %q, want no-store", got)
	}
	if err := ok(s.Get("us-east", s.Key("us", "gold")), "us-east", "us-west"); err != nil {
		t.Errorf("the same key at home: %v", err)
	}
	if got := s.Count("eu-west") + s.Count("eu-central") - before; got != passed {
		t.Errorf("the emea upstreams answered %d requests, want the %d that were admitted", got, passed)
	}
}

type badKey struct{ name, key, reason string }

func badKeys(t *testing.T, good string) []badKey {
	t.Helper()
	_, minted, err := apikey.Mint("emea", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	last := byte('0')
	if good[len(good)-1] == last {
		last = '1'
	}
	// The id of a known key with another secret, the checksum right: only the digest can tell.
	_, id, _ := apikey.Parse(good)
	_, mintedID, _ := apikey.Parse(minted.Reveal())
	return []badKey{
		{"no key", "", "key-missing"},
		{"not a key", "hunter2", "key-invalid"},
		{"tampered checksum", good[:len(good)-1] + string(last), "key-invalid"},
		{"unknown key", minted.Reveal(), "key-invalid"},
		{"wrong secret", resum(strings.Replace(minted.Reveal(), mintedID, id, 1)), "key-invalid"},
		{"unknown zone", resum(strings.Replace(good, "bw_emea_", "bw_mars_", 1)), "key-invalid"},
	}
}

// limited sends sixty requests as fast as it can, twelve at a time, with a key of 5 requests a second, burst 5, and returns
// how many passed. One at a time they may come slower than that on a busy machine, and none is limited; but the first one
// is alone, so that all others are told of a quota that has been used.
func limited(t *testing.T, ask func() harness.Answer) int64 {
	t.Helper()
	var passed, stopped int64
	answers, left := make(chan harness.Answer, 60), make(chan struct{}, 60)
	start := time.Now()
	answers <- ask()
	for len(left) < 59 {
		left <- struct{}{}
	}
	close(left)
	var askers sync.WaitGroup
	for range 12 {
		askers.Go(func() {
			for range left {
				answers <- ask()
			}
		})
	}
	askers.Wait()
	elapsed := time.Since(start)
	close(answers)
	for a := range answers {
		switch {
		case a.Err != nil:
			t.Fatalf("free: %v", a.Err)
		case a.Status == http.StatusOK:
			passed++
		default:
			stopped++
			if err := refused(a, 429, "rate-exceeded"); err != nil {
				t.Fatalf("free over its rate: %v", err)
			}
			if n, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || n < 1 {
				t.Errorf("free over its rate: Retry-After is %q, want whole seconds from 1", a.Header.Get("Retry-After"))
			}
		}
		for header, want := range map[string]string{"RateLimit": `^"plan";r=\d+;t=\d+, "quota";r=9\d{3};t=\d+$`, "RateLimit-Policy": `^"plan";q=5;w=1, "quota";q=10000;w=\d+$`} {
			if got := a.Header.Get(header); !regexp.MustCompile(want).MatchString(got) {
				t.Errorf("free, status %d: %s is %q, want %s", a.Status, header, got, want)
			}
		}
	}
	most := 5 + int64(5*elapsed.Seconds()) + 1
	if passed < 5 || passed > most || stopped == 0 {
		t.Errorf("free: %d of 60 requests passed in %s and %d were limited, want 5 to %d and some limited", passed, elapsed, stopped, most)
	}
	return passed
}

// protocols: the same logical request gets the same verdict over every protocol.
func protocols(t *testing.T, s *harness.Sandbox) {
	gold := s.Key("emea", "gold")
	cases := []struct {
		name, host, key string
		status          int
		reason          string
	}{
		{"gold", ordersEMEA, gold, 200, ""},
		{"free on reports", reportsEMEA, s.Key("emea", "free"), 403, "not-entitled"},
		{"us key", ordersEMEA, s.Key("us", "gold"), 421, "key-foreign"},
	}
	for _, k := range badKeys(t, gold) {
		cases = append(cases, struct {
			name, host, key string
			status          int
			reason          string
		}{k.name, ordersEMEA, k.key, 401, k.reason})
	}
	for _, protocol := range []string{harness.HTTP1, harness.HTTP2, harness.Clear} {
		client := s.ClientFor(protocol, "eu-west")
		for _, c := range cases {
			a := s.Send(client, http.MethodGet, c.host, "/v1/orders", c.key, nil)
			err := ok(a, "eu-west", "eu-central") // on a busy machine the pair
			if c.status != http.StatusOK {
				err = refused(a, c.status, c.reason)
			}
			if err != nil {
				t.Errorf("%s, %s: %v", protocol, c.name, err)
			}
		}
		client.CloseIdleConnections()
	}
}

// resum gives a key text its right checksum again, as anybody who read the documentation can.
func resum(key string) string {
	const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	body := key[:len(key)-6]
	crc := crc32.ChecksumIEEE([]byte(body))
	var tail [6]byte
	for i := 5; i >= 0; i-- {
		tail[i] = alphabet[crc%62]
		crc /= 62
	}
	out := body + string(tail[:])
	if _, _, ok := apikey.Parse(out); !ok {
		panic("the checksum of " + body[:8] + " is wrong: the case tests nothing")
	}
	return out
}
