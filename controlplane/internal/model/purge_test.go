package model_test

import (
	"fmt"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
)

func TestPurges_Add(t *testing.T) {
	at := time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)
	p := model.Purges{API: "a"}.Add(at, model.Purge{What: "x"}, model.Purge{What: "y", Soft: true})
	if p.Seq != 2 || p.All != 0 || len(p.Of) != 2 {
		t.Fatalf("got %+v", p)
	}
	if q := p.Add(at, model.Purge{What: "y"}); q.Seq != 3 || len(q.Of) != 2 || q.Of[1].Seq != 3 || q.Of[1].Soft {
		t.Errorf("a harder one does not replace the softer: %+v", q)
	}
	if q := p.Add(at, model.Purge{What: "x", Soft: true}); len(q.Of) != 3 {
		t.Errorf("a softer one replaces the harder: %+v", q)
	}
	if q := p.Add(at); len(q.Of) != 2 || q.Seq != 2 {
		t.Errorf("nothing more: %+v", q)
	}
	if q := p.Add(at, model.Purge{}, model.Purge{What: "z"}); q.All != 3 || len(q.Of) != 1 || q.Of[0].Seq != 4 {
		t.Errorf("all, and then one: %+v", q)
	}
	if q := p.Add(at.Add(model.PurgeKept), model.Purge{What: "z"}); len(q.Of) != 1 || q.All != 2 || q.Seq != 3 {
		t.Errorf("a day later what is forgotten is one of everything, for edges that missed it: %+v", q)
	}
	// A node whose clock is far behind purges, and one whose clock is right after it.
	q := p.Add(at.Add(-2*model.PurgeKept), model.Purge{What: "late"}).Add(at.Add(time.Minute), model.Purge{What: "z"})
	if len(q.Of) != 1 || q.All != 3 || q.Of[0].Seq != 4 {
		t.Errorf("by a clock that is behind: %+v", q)
	}
	for i := range 1000 {
		p = p.Add(at, model.Purge{What: fmt.Sprint(i)})
	}
	if len(p.Of) != model.MaxPurges || p.All != p.Of[0].Seq-1 || p.Seq != 1002 {
		t.Errorf("a thousand: %d are held behind %d of %d", len(p.Of), p.All, p.Seq)
	}
}
