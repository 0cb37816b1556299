package alert_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/alert"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// books is what the ledger says.
type books struct {
	took     time.Duration // by each read
	mu       sync.Mutex    // covers the rest
	accounts []alert.Account
	reads    int
}

func (b *books) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reads
}

func (b *books) set(a ...alert.Account) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.accounts = a
}

func (b *books) read(context.Context) ([]alert.Account, error) {
	time.Sleep(b.took)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads++
	return slices.Clone(b.accounts), nil
}

func account(used int64) alert.Account {
	return alert.Account{Customer: "acme", Subscription: "main", Plan: "gold", Period: 1_793_491_200, PeriodEnd: 1_796_083_200, Limit: 1000, Used: used}
}

func newStore() *apitest.Store {
	store := apitest.NewStore("store/emea")
	store.Put(model.PrefixCustomer+"acme", []byte(`{"name":"acme","zone":"emea"}`))
	return store
}

func newService(t *testing.T, store *apitest.Store, b *books, allow []netip.Prefix) *alert.Service {
	t.Helper()
	return newServiceEvery(t, 10*time.Millisecond, store, b, allow, 2*time.Second)
}

func newServiceEvery(t *testing.T, every time.Duration, store group.Store, b *books, allow []netip.Prefix, timeout time.Duration) *alert.Service {
	t.Helper()
	s, err := alert.New(alert.Config{Zone: "emea", Store: store, SealKey: bytes.Repeat([]byte{5}, 32), Accounts: b.read, Allow: allow, Every: every, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, s *alert.Service, name, url string, thresholds ...int) string {
	t.Helper()
	_, text, err := s.Create(t.Context(), alert.Webhook{Name: name, URL: url, Thresholds: thresholds}, "")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// delivery is one request as a receiver saw it.
type delivery struct {
	id, signature, timestamp, body string
}

// verify is a receiver's check, written from the specification.
func (d delivery) verify(secret string) bool {
	key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", d.id, d.timestamp, d.body)
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	return slices.Contains(strings.Fields(d.signature), want)
}

func read(r *http.Request) delivery {
	content, _ := io.ReadAll(r.Body)
	return delivery{r.Header.Get("webhook-id"), r.Header.Get("webhook-signature"), r.Header.Get("webhook-timestamp"), string(content)}
}

// receiver answers by its status and remembers.
type receiver struct {
	mu     sync.Mutex // covers all
	status int
	got    []delivery
}

func (r *receiver) Do(req *http.Request) (*http.Response, error) {
	d := read(req)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, d)
	if r.status == 0 {
		return nil, errors.New("connection refused")
	}
	return &http.Response{StatusCode: r.status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("ok"))}, nil
}

func (r *receiver) answer(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = status
}

func (r *receiver) deliveries() []delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// pass lets time pass, and then what is due at that very instant happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func lead(t *testing.T, s *alert.Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	return func() { cancel(); <-done }
}

// The published vector of Standard Webhooks.
func TestSign_IsTheSpecifications(t *testing.T) {
	got, err := alert.Sign("msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`), []string{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; err != nil || got != want {
		t.Errorf("signature = %q, %v, want %q", got, err, want)
	}
}

func TestReached_IsExact(t *testing.T) {
	for _, c := range []struct {
		used, limit int64
		threshold   int
		want        bool
	}{
		{799, 1000, 80, false}, {800, 1000, 80, true}, {0, 1000, 1, false}, {10, 0, 50, false}, {3, 7, 43, false}, {4, 7, 57, true}, {1, 3, 33, true},
		{math.MaxInt64, math.MaxInt64, 100, true}, {math.MaxInt64 - 1, math.MaxInt64, 100, false}, {math.MaxInt64, math.MaxInt64, 101, false}, {-5, 10, 1, false},
	} {
		if got := alert.Reached(c.used, c.limit, c.threshold); got != c.want {
			t.Errorf("%d of %d reaches %d %%: got %v, want %v", c.used, c.limit, c.threshold, got, c.want)
		}
	}
}

func TestService_TellsEachThresholdOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, r := newStore(), &books{}, &receiver{status: 200}
		s := newServiceEvery(t, 100*time.Millisecond, store, b, nil, 0)
		s.SendBy(r.Do)
		secret := create(t, s, "ops", "https://hooks.example.com/")
		defer lead(t, s)()
		for used := int64(0); used <= 1200; used += 50 {
			b.set(account(used))
			pass(time.Second)
		}
		next := account(900)
		next.Period = next.PeriodEnd
		b.set(next) // a new period is told anew
		pass(time.Second)
		var seen []string
		ids := map[string]bool{}
		for _, d := range r.deliveries() {
			var m struct {
				Type string
				Data struct {
					Customer, Subscription string
					PeriodStart            string `json:"period_start"`
					Threshold              int    `json:"threshold_percent"`
				}
			}
			if err := json.Unmarshal([]byte(d.body), &m); err != nil || m.Type != "quota.threshold" || m.Data.Customer != "acme" || m.Data.Subscription != "main" {
				t.Errorf("body %s: %v", d.body, err)
			}
			seen = append(seen, fmt.Sprintf("%s %d", m.Data.PeriodStart[:7], m.Data.Threshold))
			if ids[d.id] {
				t.Errorf("id %s comes twice", d.id)
			}
			ids[d.id] = true
			if !d.verify(secret) {
				t.Errorf("signature %s does not verify", d.signature)
			}
		}
		if want := []string{"2026-11 50", "2026-11 80", "2026-11 100", "2026-12 50", "2026-12 80"}; !slices.Equal(slices.Sorted(slices.Values(seen)), slices.Sorted(slices.Values(want))) {
			t.Errorf("told %v, want %v", seen, want)
		}
		alerts, err := s.Alerts(t.Context(), "acme")
		if err != nil || len(alerts) != 5 || alerts[0].Status != alert.Delivered || alerts[0].Attempts != 1 {
			t.Errorf("listed: %+v, %v", alerts, err)
		}
		if others, _ := s.Alerts(t.Context(), "ac"); len(others) != 0 {
			t.Errorf("another customer's list holds %d of acme's", len(others))
		}
	})
}

// slowReads is a store whose lists take a while: they are of the moment that they began at.
type slowReads struct {
	*apitest.Store
	took time.Duration
}

type slowSnapshot struct {
	group.Snapshot
	took time.Duration
}

func (s slowReads) Local() group.Snapshot { return slowSnapshot{s.Store.Local(), s.took} }

func (s slowSnapshot) List(prefix string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		time.Sleep(s.took)
		s.Snapshot.List(prefix)(yield)
	}
}

// A look that began before a delivery's outcome was written, and ends after it, finds the webhook free and the alert
// still pending.
func TestService_TellsNothingAgainFromAnOldList(t *testing.T) {
	for _, took := range []time.Duration{50 * time.Millisecond, 150 * time.Millisecond, 300 * time.Millisecond, 700 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			store, b, r := newStore(), &books{}, &receiver{status: 200}
			s := newServiceEvery(t, 100*time.Millisecond, slowReads{store, took}, b, nil, 0)
			s.SendBy(func(req *http.Request) (*http.Response, error) {
				time.Sleep(200 * time.Millisecond)
				return r.Do(req)
			})
			create(t, s, "ops", "https://hooks.example.com/", 50, 80)
			defer lead(t, s)()
			b.set(account(1000))
			pass(time.Minute)
			if got := r.deliveries(); len(got) != 2 {
				t.Errorf("lists that take %v: %d deliveries, want one for each of two thresholds", took, len(got))
			}
		})
	}
}

// Two nodes that both take themselves for the leader, and one dies after a delivery and before it wrote that down:
// more deliveries, never another id.
func TestService_MeansItOnceWhoeverLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newStore(), &books{}
		r := &receiver{status: 200}
		var stops []func()
		for i := range 2 {
			s := newServiceEvery(t, 100*time.Millisecond, store, b, nil, 0)
			if i == 0 {
				create(t, s, "ops", "https://hooks.example.com/", 50, 80, 100)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				s.SendBy(func(req *http.Request) (*http.Response, error) {
					cancel() // killed: the receiver has it, and nobody knows
					return r.Do(req)
				})
				go func() { defer close(done); s.Run(ctx) }()
				stops = append(stops, func() { cancel(); <-done })
				continue
			}
			s.SendBy(r.Do)
			stops = append(stops, lead(t, s))
		}
		b.set(account(1000))
		pass(time.Minute)
		for _, stop := range stops {
			stop()
		}
		ids := map[string]string{}
		for _, d := range r.deliveries() {
			if before, ok := ids[d.id]; ok && before != d.body {
				t.Errorf("id %s has two bodies:\n%s\n%s", d.id, before, d.body)
			}
			ids[d.id] = d.body
		}
		if len(ids) != 3 {
			t.Errorf("%d meanings in %d deliveries, want 3: %v", len(ids), len(r.deliveries()), slices.Collect(maps.Keys(ids)))
		}
	})
}

func TestService_TriesAgainAsTheSpecificationSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, r := newStore(), &books{}, &receiver{}
		b.set(account(500))
		begun := time.Now()
		var at []time.Duration
		run := func() func() { // a new leader goes on where the last one stopped
			s := newServiceEvery(t, 2*time.Second, store, b, nil, 0)
			s.SendBy(func(req *http.Request) (*http.Response, error) {
				at = append(at, time.Since(begun))
				return r.Do(req)
			})
			return lead(t, s)
		}
		first := newServiceEvery(t, 2*time.Second, store, b, nil, 0)
		create(t, first, "ops", "https://hooks.example.com/", 50)
		stop := run()
		pass(time.Hour)
		stop()
		stop = run()
		pass(100 * time.Hour)
		stop()
		if len(at) != len(alert.Delays) {
			t.Fatalf("%d tries, want %d", len(at), len(alert.Delays))
		}
		for i := 1; i < len(at); i++ {
			took := at[i] - at[i-1]
			if least, most := alert.Delays[i], alert.Delays[i]*6/5+3*time.Second; took < least || took > most {
				t.Errorf("try %d comes %v after the one before, want %v to %v", i+1, took, least, most)
			}
		}
		alerts, _ := first.Alerts(t.Context(), "")
		if len(alerts) != 1 || alerts[0].Status != alert.Failed || alerts[0].LastError != "connection refused" {
			t.Errorf("after ten tries: %+v", alerts)
		}
	})
}

func TestService_RotatesSecretsWithoutAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, r := newStore(), &books{}, &receiver{status: 200}
		s := newServiceEvery(t, 2*time.Second, store, b, nil, 0)
		s.SendBy(r.Do)
		old := create(t, s, "ops", "https://hooks.example.com/", 10, 20, 30)
		defer lead(t, s)()
		fresh, err := s.Rotate(t.Context(), "ops", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		b.set(account(100))
		pass(time.Minute)
		pass(time.Hour)
		b.set(account(200))
		pass(time.Minute)
		got := r.deliveries()
		if len(got) != 2 || !got[0].verify(old) || !got[0].verify(fresh) || got[1].verify(old) || !got[1].verify(fresh) {
			t.Errorf("deliveries %+v: want the first signed by both secrets and the second by the new one", got)
		}
		for _, text := range []string{old, fresh} {
			if raw, _ := base64.StdEncoding.DecodeString(text[6:]); strings.Contains(store.Dump(), text[6:]) || strings.Contains(store.Dump(), string(raw)) {
				t.Error("a secret rests in the store unsealed")
			}
		}
		if _, err := s.Rotate(t.Context(), "ops", 8*24*time.Hour); fault.ReasonOf(err) != alert.ReasonOverlap {
			t.Errorf("an overlap of 8 days: %v", err)
		}
	})
}

func TestService_StopsForWhoWantsNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, r := newStore(), &books{}, &receiver{status: http.StatusGone}
		s := newServiceEvery(t, time.Minute, store, b, nil, 0)
		s.SendBy(r.Do)
		create(t, s, "ops", "https://hooks.example.com/", 50)
		create(t, s, "dead", "https://dead.example.com/", 100)
		defer lead(t, s)()
		b.set(account(500))
		pass(time.Hour)
		if got := r.deliveries(); len(got) != 1 {
			t.Errorf("410 is followed by %d deliveries, want none", len(got)-1)
		}
		r.answer(503)
		b.set(account(1000))
		pass(2 * time.Minute) // what is sent by then is under way before the webhook is deleted
		if err := s.Delete(t.Context(), "dead"); err != nil {
			t.Fatal(err)
		}
		n := len(r.deliveries())
		pass(24 * time.Hour)
		alerts, _ := s.Alerts(t.Context(), "")
		if len(r.deliveries()) != n || alerts[0].Status != alert.Failed || alerts[0].LastError != "the webhook was deleted" {
			t.Errorf("after it was deleted: %d more deliveries, %+v", len(r.deliveries())-n, alerts[0])
		}
		if err := s.Delete(t.Context(), "dead"); fault.ReasonOf(err) != alert.ReasonNotFound {
			t.Errorf("deleted twice: %v", err)
		}
		if err := s.Delete(t.Context(), "ops"); err != nil {
			t.Fatal(err)
		}
		pass(36 * 24 * time.Hour)
		if alerts, _ := s.Alerts(t.Context(), ""); len(alerts) != 0 {
			t.Errorf("%d alerts are kept 36 days after the last webhook is gone", len(alerts))
		}
	})
}

func TestService_PeriodsWithoutAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, r := newStore(), &books{}, &receiver{status: 200}
		s := newServiceEvery(t, 2*time.Second, store, b, nil, 0)
		s.SendBy(r.Do)
		create(t, s, "ops", "https://hooks.example.com/", 80)
		defer lead(t, s)()
		prepaid, rolling := account(80), account(80)
		prepaid.Period, prepaid.PeriodEnd, prepaid.Limit = usage.PeriodPrepaid, 0, 100
		rolling.Period, rolling.PeriodEnd, rolling.Limit, rolling.Subscription = usage.PeriodRolling, 0, 100, "slide"
		b.set(prepaid, rolling)
		pass(time.Hour)
		if n := len(r.deliveries()); n != 2 {
			t.Errorf("%d deliveries, want 2", n)
		}
		prepaid.Limit, prepaid.Used = 200, 160 // topped up, and used up to 80 % again
		b.set(prepaid, rolling)
		pass(24 * time.Hour)
		if n := len(r.deliveries()); n != 4 {
			t.Errorf("%d deliveries after a top-up and a day, want 4", n)
		}
	})
}

// Usage of a customer who was erased may be read a moment longer; his name is not written down again.
// Reading every quota of a large zone takes as long as it takes, and no more than a tenth of the node's time.
func TestService_RestsAfterLongReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, r := newStore(), &books{took: 2 * time.Second}, &receiver{status: 200}
		s := newServiceEvery(t, 2*time.Second, store, b, nil, 0)
		s.SendBy(r.Do)
		create(t, s, "ops", "https://hooks.example.com/")
		b.set(account(500))
		defer lead(t, s)()
		pass(201 * time.Second)
		if n := b.count(); n < 9 || n > 11 {
			t.Errorf("quotas that take 2 s to read were read %d times in 200 s, want 10 or so", n)
		}
		if n := len(r.deliveries()); n != 1 {
			t.Errorf("%d deliveries, want 1", n)
		}
	})
}

// Old facts go when they are found to be old, however many there are: a store must not grow for ever.
func TestService_ForgetsAllThatIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newStore(), &books{}
		s := newServiceEvery(t, time.Minute, store, b, nil, 0)
		for i := range 3000 {
			store.Put(fmt.Sprintf("%sacme/main/%d/w/50", model.PrefixAlert, i), model.Encode(alert.Alert{ID: "a", Customer: "acme", RaisedAt: time.Now().Add(-36 * 24 * time.Hour), Status: alert.Delivered}))
		}
		store.Put(model.PrefixAlert+"acme/main/new/w/50", model.Encode(alert.Alert{ID: "b", Customer: "acme", RaisedAt: time.Now().Add(-34 * 24 * time.Hour), Status: alert.Delivered}))
		defer lead(t, s)()
		pass(2 * time.Hour)
		left := 0
		for range store.Local().List(model.PrefixAlert) {
			left++
		}
		if left != 1 {
			t.Errorf("%d facts are left after two hours, want the one that is not old", left)
		}
	})
}

func TestService_NamesNobodyWhoIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, r := newStore(), &books{}, &receiver{status: 200}
		s := newServiceEvery(t, 100*time.Millisecond, store, b, nil, 0)
		s.SendBy(r.Do)
		create(t, s, "ops", "https://hooks.example.com/", 50)
		defer lead(t, s)()
		gone := account(900)
		gone.Customer = "aaron"
		b.set(gone, account(900))
		pass(time.Second)
		if len(r.deliveries()) != 1 || strings.Contains(store.Dump(), "aaron") {
			t.Errorf("%d deliveries, want the one of acme, and nothing of aaron in:\n%s", len(r.deliveries()), store.Dump())
		}
	})
}

func TestCreate_RefusesWithAReason(t *testing.T) {
	store, b := newStore(), &books{}
	s := newService(t, store, b, nil)
	create(t, s, "ops", "https://hooks.example.com/")
	before := store.Dump()
	good := alert.Webhook{Name: "more", URL: "https://hooks.example.com/"}
	for want, spoil := range map[string]func(*alert.Webhook){
		"NAME_INVALID":        func(w *alert.Webhook) { w.Name = "../keys/1" },
		alert.ReasonExists:    func(w *alert.Webhook) { w.Name = "ops" },
		alert.ReasonAddress:   func(w *alert.Webhook) { w.URL = "https://169.254.169.254/" },
		alert.ReasonURL:       func(w *alert.Webhook) { w.URL = "http://hooks.example.com/" },
		alert.ReasonThreshold: func(w *alert.Webhook) { w.Thresholds = []int{0} },
		"CUSTOMER_NOT_FOUND":  func(w *alert.Webhook) { w.Customer = "nobody" },
	} {
		w := good
		spoil(&w)
		if _, _, err := s.Create(t.Context(), w, ""); fault.ReasonOf(err) != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if store.Dump() != before {
		t.Error("a refused webhook left something behind")
	}
	// The same request id again: the secret is not shown twice.
	if _, _, err := s.Create(t.Context(), good, "r1"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Create(t.Context(), good, "r1"); fault.ReasonOf(err) != alert.ReasonExists {
		t.Errorf("the same request again: %v", err)
	}
	for i := 2; i < alert.MaxWebhooks; i++ {
		create(t, s, fmt.Sprintf("w%d", i), "https://hooks.example.com/")
	}
	if _, _, err := s.Create(t.Context(), alert.Webhook{Name: "last", URL: good.URL}, ""); fault.ReasonOf(err) != alert.ReasonTooMany {
		t.Errorf("webhook %d: %v", alert.MaxWebhooks+1, err)
	}
}
