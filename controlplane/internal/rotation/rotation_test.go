package rotation_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/rotation"
)

func TestSweep_NotesWhatHasEndedAndForgetsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := apitest.NewStore("store/emea")
		right := new(atomic.Bool)
		begin := time.Now()
		for i := range 150 { // more than one transaction
			id := fmt.Sprintf("k%03d", i)
			store.Put(model.PrefixKey+id, model.Encode(model.Key{ID: id, Customer: "acme", Status: "active"}))
			store.Put(model.PrefixKeyEnd+id, model.Encode(model.KeyEnd{ID: id, At: begin.Add(time.Hour), ReplacedBy: "n" + id}))
		}
		store.Put(model.PrefixKey+"later", model.Encode(model.Key{ID: "later", Customer: "acme", Status: "active"}))
		store.Put(model.PrefixKeyEnd+"later", model.Encode(model.KeyEnd{ID: "later", At: begin.Add(100 * time.Hour)}))
		store.Put(model.PrefixKeyEnd+"erased", model.Encode(model.KeyEnd{ID: "erased", At: begin}))
		s, err := rotation.New(rotation.Config{Store: store, Clock: clock{right}, Every: 5 * time.Minute, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		right.Store(true)
		count := func(what string) int { return strings.Count(store.Dump(), what) }
		time.Sleep(time.Hour - time.Second)
		if n := count(`"status":"revoked"`); n != 0 {
			t.Errorf("%d keys are revoked before their end", n)
		}
		if n := count(model.PrefixKeyEnd + "erased"); n != 0 {
			t.Error("the end of a key that is not there stays")
		}
		right.Store(false) // it may be early: nothing is ended by this node
		time.Sleep(6 * time.Minute)
		if n := count(`"status":"revoked"`); n != 0 {
			t.Errorf("%d keys are revoked by a clock that others do not share", n)
		}
		right.Store(true)
		time.Sleep(6 * time.Minute)
		if n := count(`"status":"revoked"`); n != 150 {
			t.Errorf("%d keys are revoked after their end, want 150", n)
		}
		if n := count(model.PrefixKeyEnd); n != 151 {
			t.Errorf("%d ends are remembered, want 151", n)
		}
		time.Sleep(rotation.Keep)
		if n := count(model.PrefixKeyEnd); n != 1 {
			t.Errorf("a day later %d ends are remembered, want 1", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

type clock struct{ right *atomic.Bool }

func (c clock) ClockAgrees(limit time.Duration) bool { return limit > 0 && c.right.Load() }
