package grant_test

import (
	"slices"
	"testing"

	"bailiwick/regions"
	"bailiwick/regions/grant"
)

func pair(policy, from, to, basis string) regions.Permitted {
	return regions.Permitted{Policy: policy, From: from, To: to, Basis: basis, Classes: []string{regions.DefaultClass}}
}

func look(pairs ...regions.Permitted) (out []grant.Pair) {
	for _, p := range pairs {
		out = append(out, grant.Pair{Policy: p.Policy, From: p.From, To: p.To, Basis: p.Basis})
	}
	return out
}

// A look finds what is gone, policy by policy and direction by direction, also when as much has come as has gone.
func TestNotice(t *testing.T) {
	out, back, wide := pair("gdpr", "west", "central", "law"), pair("gdpr", "central", "west", "law"), pair("wide", "west", "central", "law")
	other := pair("gdpr", "west", "central", "another law")
	for _, x := range []struct {
		name    string
		before  []regions.Permitted
		known   bool
		now     []regions.Permitted
		pending []regions.Permitted
		lost    []regions.Permitted
		back    []int
		same    bool
	}{
		{"nothing new", []regions.Permitted{out, back}, true, []regions.Permitted{out, back}, nil, nil, nil, true},
		{"the first look, at nothing", nil, false, nil, nil, nil, nil, false},
		{"one is gone", []regions.Permitted{out, back}, true, []regions.Permitted{back}, nil, []regions.Permitted{out}, nil, false},
		{"one went, another came", []regions.Permitted{out}, true, []regions.Permitted{back}, nil, []regions.Permitted{out}, nil, false},
		{"it is gone under one policy", []regions.Permitted{out, wide}, true, []regions.Permitted{wide}, nil, []regions.Permitted{out}, nil, false},
		{"it moved to another policy", []regions.Permitted{out}, true, []regions.Permitted{wide}, nil, []regions.Permitted{out}, nil, false},
		{"it rests on another basis", []regions.Permitted{out}, true, []regions.Permitted{other}, nil, nil, nil, false},
		{"it came back", []regions.Permitted{back}, true, []regions.Permitted{back, out}, []regions.Permitted{wide, out}, nil, []int{1}, false},
		{"it came back under another policy", []regions.Permitted{back}, true, []regions.Permitted{back, wide}, []regions.Permitted{out}, nil, nil, false},
	} {
		c, same := grant.Notice(look(x.before...), x.known, x.now, look(x.pending...))
		if same != x.same || !slices.Equal(c.Lost, look(x.lost...)) || !slices.Equal(c.Back, x.back) || !slices.Equal(c.Now, look(x.now...)) {
			t.Errorf("%s: same %v, now %v, lost %v, back %v; want %v, %v, %v, %v", x.name, same, c.Now, c.Lost, c.Back, x.same, look(x.now...), look(x.lost...), x.back)
		}
	}
}

func TestNoticed_KeepsWhatTheLastLookHadUnderThatPolicy(t *testing.T) {
	out, back, wide := pair("gdpr", "west", "central", "law"), pair("gdpr", "central", "west", "law"), pair("wide", "west", "central", "law")
	got := grant.Noticed([]regions.Permitted{out, back, wide}, look(pair("gdpr", "west", "central", "an earlier basis")))
	if !slices.Equal(look(got...), look(out)) {
		t.Errorf("kept %v, want the pair of that policy and direction alone", look(got...))
	}
}

func TestTouching(t *testing.T) {
	usage := pair("gdpr", "west", "central", "law")
	usage.Classes = []string{"usage"}
	in, out, abroad := pair("gdpr", "us", "west", "scc"), pair("gdpr", "west", "us", "scc"), pair("gdpr", "us", "mexico", "scc")
	got := grant.Touching([]regions.Permitted{usage, in, out, abroad}, func(region string) bool { return region == "west" })
	if !slices.Equal(look(got...), look(in, out)) {
		t.Errorf("kept %v, want what begins or ends here and carries requests", look(got...))
	}
}

func TestFreshTable(t *testing.T) {
	for _, x := range []struct {
		epoch, index uint64
		want         bool
	}{{2, 9, true}, {2, 10, true}, {2, 8, false}, {1, 10, false}, {3, 10, false}} {
		if got := grant.FreshTable(x.epoch, x.index, 2, 9); got != x.want {
			t.Errorf("a table of %d.%d where pairs changed at 2.9: fresh %v, want %v", x.epoch, x.index, got, x.want)
		}
	}
}
