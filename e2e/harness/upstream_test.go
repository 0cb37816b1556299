package harness_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

// The upstream's ways to die are the faults of other tests: each must be what it says.
func TestUpstream_Dies(t *testing.T) {
	u := harness.NewUpstream(t, "eu-west")
	client := &http.Client{Timeout: 300 * time.Millisecond}
	post := func(id string) (int, error) {
		response, err := client.Post("http://"+u.Address+"/posts/"+id, "application/json", strings.NewReader(`{"n":1}`))
		if err != nil {
			return 0, err
		}
		response.Body.Close()
		return response.StatusCode, nil
	}
	if status, err := post("good"); status != http.StatusOK || u.Seen()["POST /posts/good"] != 1 {
		t.Fatalf("healthy: %d, %v, seen %v", status, err, u.Seen())
	}

	u.Pause()
	if status, err := post("paused"); err == nil {
		t.Errorf("paused: answered %d", status)
	}
	if n := u.Seen()["POST /posts/paused"]; n != 0 {
		t.Errorf("paused: it has read %d requests", n)
	}
	u.Resume()
	deadline := time.Now().Add(30 * time.Second)
	for u.Seen()["POST /posts/paused"] != 1 {
		if time.Now().After(deadline) {
			t.Fatalf("resumed: seen %v; what had arrived while it stood must be carried out", u.Seen())
		}
		time.Sleep(5 * time.Millisecond)
	}

	u.Break(true)
	if status, err := post("broken"); status != http.StatusServiceUnavailable {
		t.Errorf("broken: %d, %v, want 503", status, err)
	}
	u.Break(false)

	u.Kill()
	if status, err := post("dead"); err == nil {
		t.Errorf("dead: answered %d", status)
	}
	if err := u.Start(); err != nil {
		t.Fatal(err)
	}
	if status, err := post("again"); status != http.StatusOK {
		t.Errorf("started again: %d, %v, want 200", status, err)
	}
	if got, want := u.Under("/posts/"), int64(4); got != want {
		t.Errorf("%d requests reached it, want %d: %v", got, want, u.Seen())
	}
}
