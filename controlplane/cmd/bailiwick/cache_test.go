package main

import (
	"strings"
	"testing"
)

func TestCachePurge(t *testing.T) {
	d := seeded(t)
	var out struct {
		Index, Seq uint64
		Edges      []struct{ Edge string }
	}
	if d.must(&out, "cache", "purge", "--api", "emea/orders", "--tag", "a,b", "--soft", "-o", "json"); out.Seq != 2 || out.Index == 0 {
		t.Errorf("got %+v", out)
	}
	if !strings.Contains(d.in.Zones["emea"].Store.Dump(), "purges/orders") || strings.Contains(d.in.Zones["us"].Store.Dump(), "purges/") {
		t.Error("it does not rest in the API's zone alone")
	}
	if said := d.must(nil, "cache", "purge", "--api", "orders", "--zone", "us", "--all"); !strings.Contains(said, "purge 1 of API orders") {
		t.Errorf("got %s", said)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"cache", "purge", "--api", "nothing", "--all"}, exitNotFound, "API_NOT_FOUND"},
		{[]string{"cache", "purge", "--api", "emea/orders"}, exitFailure, "PURGE_INVALID"},
		{[]string{"cache", "purge", "--all"}, exitUsage, "api"},
	} {
		if code, _, stderr := d.run("", c.args...); code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: exit %d, %s; want %d and %s", c.args, code, stderr, c.code, c.want)
		}
	}
}
