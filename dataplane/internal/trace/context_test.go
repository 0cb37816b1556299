package trace_test

import (
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/trace"
)

const given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestReadParent_IsStrict(t *testing.T) {
	for text, want := range map[string]bool{
		given: true,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00":       true,
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":       true, // a version to come
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later": true,
		"":                          false,
		"00":                        false,
		strings.ToUpper(given):      false,
		given + "-more":             false, // version 00 ends there
		given + " ":                 false,
		" " + given:                 false,
		"ff" + given[2:]:            false,
		"cc" + given[2:] + ".later": false,
		strings.Repeat("0", 55):     false,
		given[:53] + "0x":           false,
		strings.Replace(given, "4bf92f3577b34da6a3ce929d0e0e4736", strings.Repeat("0", 32), 1): false,
		strings.Replace(given, "00f067aa0ba902b7", strings.Repeat("0", 16), 1):                 false,
		strings.Replace(given, "4bf9", "4bg9", 1):                                              false,
		strings.Replace(given, "-00f0", "_00f0", 1):                                            false,
	} {
		c, ok := trace.ReadParent(text)
		if ok != want || c.Given() != want {
			t.Errorf("%q: taken %v, given %v; want %v", text, ok, c.Given(), want)
		}
	}
}

func TestReadState_PassesOnWhatIsOne(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	many := make([]string, 33)
	for i := range many {
		many[i] = "k" + strings.Repeat("a", i) + "=1"
	}
	for _, c := range []struct {
		values []string
		want   string
	}{
		{nil, ""},
		{[]string{"a=1,b=2"}, "a=1,b=2"},
		{[]string{"a=1 ,\tb=2,,", "c@d=3"}, "a=1,b=2,c@d=3"},
		{[]string{"1a=with space!"}, "1a=with space!"},
		{[]string{"a=1,a=2"}, ""},
		{[]string{"A=1"}, ""},
		{[]string{"a"}, ""},
		{[]string{"a="}, ""},
		{[]string{"=1"}, ""},
		{[]string{"a=1=2"}, ""},
		{[]string{"a=\x01"}, ""},
		{[]string{"a=ä"}, ""},
		{[]string{"a=" + long(257)}, ""},
		{[]string{strings.Join(many, ",")}, ""},
		{[]string{strings.Join(many[:32], ",")}, strings.Join(many[:26], ",")}, // 512 bytes: whole members
		{[]string{"a=" + long(256) + ",b=" + long(256) + ",c=1"}, "a=" + long(256) + ",c=1"},
	} {
		got := trace.ReadState(c.values)
		if got != c.want && !(len(c.values) == 1 && c.want != "" && strings.HasPrefix(c.values[0], "k=1,ka=1") && len(got) <= 512 && strings.HasPrefix(strings.Join(many, ","), got) && len(got) > 400) {
			t.Errorf("%q: got %q, want %q", c.values, got, c.want)
		}
	}
}

// What is sent on in a trace is of that trace, and reads as it was written.
func FuzzContext(f *testing.F) {
	f.Add(given, "a=1,b=2")
	f.Add("cc"+given[2:]+"-x", "a@b=c d")
	f.Add("", ",")
	f.Fuzz(func(t *testing.T, parent, state string) {
		c, ok := trace.ReadParent(parent)
		if ok != c.Given() {
			t.Fatalf("taken %v, given %v", ok, c.Given())
		}
		if s := trace.ReadState([]string{state}); s != "" && trace.ReadState([]string{s}) != s || len(s) > 512 || strings.ContainsAny(s, "\r\n\x00") {
			t.Fatalf("%q is passed on as %q", state, s)
		}
		tr := newTracer(t, trace.Config{Ratio: 1}).Begin(time.Now(), &c, trace.Client)
		if tr == nil {
			return
		}
		next := tr.Attempt().Parent()
		if d, fine := trace.ReadParent(next); !fine || !d.Given() || len(next) != 55 || ok && next[3:35] != parent[3:35] || ok && next[36:52] == parent[36:52] {
			t.Fatalf("after %q comes %q", parent, next)
		}
	})
}
