package scenario_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

// TestLook: what an operator sees of usage, and what a customer's webhook is told of a quota.
func TestLook(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	q := &quotas{s: s, dir: t.TempDir()}
	q.apply(t, `kind: Plan
name: ten
spec: {products: [commerce], quota: {units: 10, mode: strict}}
`)
	t.Run("usage", func(t *testing.T) { lookAtUsage(t, s.With(t)) })
	t.Run("alerts", func(t *testing.T) { webhookIsTold(t, q) })
}

// lookAtUsage: folds agree with the cells to the unit, in every format, and latencies with what the upstream took.
func lookAtUsage(t *testing.T, s *harness.Sandbox) {
	key := s.Key("emea", "unlimited")
	const fast, slow = 20, 10
	ask := func(n int, path string) { // so many that its own upstream answers, which may be late on a busy machine
		for home, tries := 0, 0; home < n; tries++ {
			if tries == 10*n {
				t.Fatalf("%d of %d requests were served at home", home, tries)
			}
			a := s.Do("eu-west", http.MethodGet, ordersEMEA, path, key, nil)
			if a.Err != nil || a.Status != http.StatusOK {
				t.Fatalf("request: %d %v", a.Status, a.Err)
			}
			if a.Served() == "eu-west" {
				home++
			}
		}
	}
	ask(fast, "/v1/orders")
	ask(slow, "/v1/orders?delay=300ms")
	cells := s.UsageThrough("emea", "initech", time.Now(), 30*time.Second)
	for _, by := range []string{"hour", "day,api", "month,route,outcome", "subscription,plan,product,served_region"} {
		for _, zone := range []string{"", "Asia/Kathmandu", "America/St_Johns", "Australia/Lord_Howe"} {
			records, err := csv.NewReader(strings.NewReader(s.MustCLI("emea", "usage", "--customer", "initech", "--since", "24h", "--by", by, "--time-zone", zone, "-o", "csv"))).ReadAll()
			if err != nil || len(records) < 2 {
				t.Fatalf("by %s: %v, %v", by, records, err)
			}
			column := slices.Index(records[0], "requests")
			var sum int64
			for _, r := range records[1:] {
				n, _ := strconv.ParseInt(r[column], 10, 64)
				sum += n
			}
			if sum != cells.Total.Requests {
				t.Errorf("by %s in %q: %d requests, the cells hold %d", by, zone, sum, cells.Total.Requests)
			}
		}
	}
	var latency struct {
		Rows []struct {
			API, Route   string
			ServedRegion string `json:"served_region"`
			Count        int64
			Seconds      []float64
		}
	}
	if err := json.Unmarshal([]byte(s.MustCLI("emea", "usage", "latency", "--api", "orders", "--quantiles", "0.1,0.9,1", "-o", "json")), &latency); err != nil {
		t.Fatal(err)
	}
	for _, r := range latency.Rows {
		if r.ServedRegion != "eu-west" {
			continue
		}
		// The sandbox asked a few times by itself when it started; a third of the rest took 300 ms.
		if r.Count < fast+slow || r.Seconds[0] > 0.2 || r.Seconds[1] < 0.297 || r.Seconds[2] < 0.297 {
			t.Errorf("latencies of eu-west: %+v, want %d and more, a tenth below 0.2 s and the ninth tenth at 0.3 s", r, fast+slow)
		}
		return
	}
	t.Errorf("no latency of eu-west: %+v", latency)
}

// told is one delivery as a receiver saw it.
type told struct {
	id, timestamp, signature, body string
	status                         int
}

func (d told) verify(secret string) bool {
	key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", d.id, d.timestamp, d.body)
	return slices.Contains(strings.Fields(d.signature), "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

// webhookIsTold: the receiver is down at first, and the leader that raised the first threshold is killed before it
// could tell it. Each threshold reaches the receiver, signed, under one id each.
func webhookIsTold(t *testing.T, q *quotas) {
	s := q.s.With(t)
	var mu sync.Mutex // covers got and status
	var got []told
	status := http.StatusServiceUnavailable
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		got = append(got, told{r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), r.Header.Get("webhook-signature"), string(body), status})
		w.WriteHeader(status)
	}))
	defer receiver.Close()
	seen := func() []told {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(got)
	}
	key := q.customer(t, "watched", "ten")
	var made struct{ Secret string }
	if err := json.Unmarshal([]byte(s.MustCLI("emea", "webhook", "create", "ops", "--url", receiver.URL, "--customer", "watched", "-o", "json")), &made); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"http://169.254.169.254/latest/meta-data/", "https://10.0.0.1/", "https://[::ffff:10.0.0.1]/", "http://example.com@127.0.0.1/"} {
		if _, stderr, code := s.CLI("emea", "webhook", "create", "bad", "--url", url); code != 1 || !strings.Contains(stderr, "WEBHOOK_") {
			t.Errorf("webhook to %s: exit %d, want 1 and a reason: %s", url, code, stderr)
		}
	}
	ask := func(n int) {
		for range n {
			if a := s.Do("eu-west", http.MethodGet, ordersEMEA, "/v1/orders", key, nil); a.Err != nil || a.Status != http.StatusOK {
				t.Fatalf("request: %d %v", a.Status, a.Err)
			}
		}
	}
	ask(5)
	s.Eventually(20*time.Second, "a first try", func() error {
		if n := len(seen()); n == 0 {
			return fmt.Errorf("no delivery yet")
		}
		return nil
	})
	leader := s.Leader("store/emea")
	s.Act("kill", leader)
	mu.Lock()
	status = http.StatusNoContent
	mu.Unlock()
	s.Eventually(40*time.Second, "the next leader's try", func() error {
		if d := seen(); d[len(d)-1].status != http.StatusNoContent {
			return fmt.Errorf("%d tries, none taken", len(d))
		}
		return nil
	})
	ask(5)
	type alert struct {
		ID, Status string
		Threshold  int
	}
	var alerts []alert
	s.Eventually(30*time.Second, "three thresholds delivered", func() error {
		alerts = nil
		if err := json.Unmarshal([]byte(s.MustCLI("emea", "alert", "list", "--customer", "watched", "-o", "json")), &alerts); err != nil {
			return err
		}
		if len(alerts) != 3 || slices.ContainsFunc(alerts, func(a alert) bool { return a.Status != "delivered" }) {
			return fmt.Errorf("%+v", alerts)
		}
		return nil
	})
	s.Act("start", leader)
	bodies := map[string]string{}
	for _, d := range seen() {
		if !d.verify(made.Secret) {
			t.Errorf("delivery %+v does not verify", d)
		}
		if before, ok := bodies[d.id]; ok && before != d.body {
			t.Errorf("id %s has two bodies: %s and %s", d.id, before, d.body)
		}
		bodies[d.id] = d.body
	}
	if len(bodies) != 3 || slices.ContainsFunc(alerts, func(a alert) bool { return bodies[a.ID] == "" }) {
		t.Errorf("the receiver knows %d alerts, the zone lists %+v", len(bodies), alerts)
	}
	var forecast []struct {
		Customer    string
		Used, Limit int64
		ExhaustedAt *time.Time `json:"exhausted_at"`
	}
	if err := json.Unmarshal([]byte(s.MustCLI("emea", "usage", "forecast", "-o", "json")), &forecast); err != nil {
		t.Fatal(err)
	}
	if len(forecast) == 0 || forecast[0].Customer != "watched" || forecast[0].Used != 10 || forecast[0].Limit != 10 || forecast[0].ExhaustedAt == nil {
		t.Errorf("forecast: %+v, want the customer whose quota is used up first", forecast)
	}
}
