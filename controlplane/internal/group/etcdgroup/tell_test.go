package etcdgroup

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestTell_FollowsWhatOthersWrite(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 1)
	cl := c.raw()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	put := func(k, v string) {
		t.Helper()
		if _, err := cl.Put(ctx, k, v); err != nil {
			t.Fatal(err)
		}
	}
	put("up/a", "1")
	put("other/a", "x")
	told, ended := make(chan string, 100), make(chan error, 1)
	go func() {
		ended <- Tell(ctx, Config{Endpoints: c.endpoints()}, "up/", 3, func(m map[string]string) { told <- fmt.Sprint(m) })
	}()
	until := func(want string) {
		t.Helper()
		for {
			select {
			case got := <-told:
				if got == want {
					return
				}
			case err := <-ended:
				t.Fatalf("it ended before %s: %v", want, err)
			case <-ctx.Done():
				t.Fatalf("%s is not told", want)
			}
		}
	}
	until("map[a:1]")
	put("up/b", "2")
	until("map[a:1 b:2]")
	if _, err := cl.Delete(ctx, "up/a"); err != nil {
		t.Fatal(err)
	}
	until("map[b:2]")
	for _, k := range []string{"x", "y", "z"} {
		put("up/"+k, "")
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "more than 3 keys") {
		t.Errorf("more than may be: got %v", err)
	}
	if err := Tell(ctx, Config{Endpoints: c.endpoints()}, "up/", 3, func(map[string]string) { t.Error("told of more than may be") }); err == nil {
		t.Error("more than may be, from the first: no error")
	}
}
