package alert_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/alert"
)

// The dial is what counts: a name may point anywhere by then.
func TestDelivery_IsRefusedAtTheDial(t *testing.T) {
	reached := make(chan string, 10)
	inside := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { reached <- r.URL.Path }))
	defer inside.Close()
	store, b := newStore(), &books{}
	opened := newService(t, store, b, loopback) // a sandbox's node takes the URL
	create(t, opened, "ops", inside.URL+"/hook", 50)
	create(t, opened, "byname", strings.Replace(inside.URL, "127.0.0.1", "localhost", 1)+"/named", 50)
	b.set(account(500))
	strict := newService(t, store, b, nil) // a node of production leads
	stop := lead(t, strict)
	var alerts []alert.Alert
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		alerts, _ = strict.Alerts(t.Context(), "")
		if len(alerts) == 2 && alerts[0].Attempts > 0 && alerts[1].Attempts > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no try within a minute: %+v", alerts)
		}
	}
	stop()
	for _, a := range alerts {
		if !strings.Contains(a.LastError, "not of the public internet") || strings.Contains(a.LastError, "/hook") {
			t.Errorf("%s: last error %q", a.Webhook, a.LastError)
		}
	}
	select {
	case path := <-reached:
		t.Errorf("a loopback address was reached: %s", path)
	default:
	}
}

func TestDelivery_FollowsNothingAndReadsLittle(t *testing.T) {
	var elsewhere, asked int
	var mu sync.Mutex
	mux := http.NewServeMux()
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/elsewhere", func(http.ResponseWriter, *http.Request) { mu.Lock(); elsewhere++; mu.Unlock() })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		asked++
		mu.Unlock()
		for range 1 << 20 {
			if _, err := w.Write(make([]byte, 1<<10)); err != nil {
				return
			}
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	store, b := newStore(), &books{}
	s := newServiceEvery(t, 10*time.Millisecond, store, b, loopback, time.Minute) // a try that times out comes again
	create(t, s, "away", server.URL+"/away", 50)
	create(t, s, "endless", server.URL+"/endless", 50)
	b.set(account(500))
	stop := lead(t, s)
	defer stop()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		alerts, _ := s.Alerts(t.Context(), "")
		ok := map[string]string{}
		for _, a := range alerts {
			ok[a.Webhook] = a.Status + " " + a.LastError
		}
		if ok["endless"] == "delivered " && ok["away"] == "pending the receiver answers 307: redirects are not followed" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("got %v", ok)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if elsewhere != 0 || asked != 1 {
		t.Errorf("the redirect was followed %d times, the endless answer asked for %d times", elsewhere, asked)
	}
}
