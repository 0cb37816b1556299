package etcdgroup

import (
	"bytes"
	"crypto/tls"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
)

// What is written is read back, and no prefix or longer text of it passes for something else.
func TestCodec_ReadsWhatItWrote(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		num := func(name string) uint64 { return rapid.Uint64Range(0, 1<<62).Draw(t, name) }
		text := rapid.StringN(0, 20, 40)
		at := time.Unix(0, int64(num("at"))).UTC()
		h := head{group: text.Draw(t, "group"), nonce: text.Draw(t, "nonce"), serial: num("serial"), rev: group.Revision{Epoch: num("epoch"), Index: num("index")},
			at: at, requests: num("requests"), keys: num("keys"), bulk: rapid.Bool().Draw(t, "bulk"), cluster: num("cluster"), term: num("term"), entry: num("entry")}
		if got, err := decodeHead(h.encode()); err != nil || got != h {
			t.Fatalf("head: got %+v, %v, want %+v", got, err, h)
		}
		n := entry{head: h.encode(), prev: text.Draw(t, "prev"), epoch: rapid.Bool().Draw(t, "opens"), records: []record{}}
		for range rapid.IntRange(0, 3).Draw(t, "records") {
			r := record{id: text.Draw(t, "id"), failed: rapid.IntRange(-1, 5).Draw(t, "failed"), ops: []group.Op{}}
			for range rapid.IntRange(0, 3).Draw(t, "ops") {
				switch op := (group.Op{Key: text.Draw(t, "key")}); rapid.IntRange(0, 2).Draw(t, "kind") {
				case 0:
					op.Value = []byte(text.Draw(t, "value"))
					r.ops = append(r.ops, op)
				case 1:
					op.Delete = true
					r.ops = append(r.ops, op)
				default:
					op.DeletePrefix = true
					r.ops = append(r.ops, op)
				}
			}
			n.records = append(n.records, r)
		}
		b := n.encode()
		if got, err := decodeEntry(b); err != nil || !reflect.DeepEqual(got, n) {
			t.Fatalf("entry: got %+v, %v, want %+v", got, err, n)
		}
		cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
		if _, err := decodeEntry(b[:cut]); err == nil {
			t.Fatalf("entry cut at %d of %d: it is read", cut, len(b))
		}
		if _, err := decodeEntry(append(bytes.Clone(b), 0)); err == nil {
			t.Fatal("entry with a byte more: it is read")
		}
		kv := group.KV{Key: "k", Value: []byte(text.Draw(t, "v")), CreateIndex: num("c"), ModIndex: num("m"), Version: num("n")}
		if got, err := decodeKV("k", encodeKV(kv)); err != nil || !reflect.DeepEqual(got, kv) {
			t.Fatalf("key: got %+v, %v, want %+v", got, err, kv)
		}
		all := []replica.Remembered{{ID: text.Draw(t, "rid"), Result: group.Result{Succeeded: true, Revision: h.rev, Time: at, Failed: -1}}}
		if got, err := decodeResults(encodeResults(all)); err != nil || !reflect.DeepEqual(got, all) {
			t.Fatalf("results: got %+v, %v, want %+v", got, err, all)
		}
	})
	var newer newerFormat
	if _, err := decodeHead([]byte{format + 1}); !errors.As(err, &newer) {
		t.Errorf("a newer head: got %v, want newerFormat", err)
	}
}

// The memory of requests does not grow in etcd without end, and what a node remembers is never among what goes.
func TestDraft_TrimsWhatNobodyRemembers(t *testing.T) {
	s, err := Open(Config{Name: "g", Node: "n", Endpoints: []string{"127.0.0.1:1"}, Prefix: "p/"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		requests uint64
		want     string
	}{
		{1023, ""}, {65_536, ""}, {70_000, ""}, {69*1024 - 1, "p/r/0000000000000e00"}, {1024*1024 - 1, "p/r/00000000000efa00"},
	} {
		p := &position{state: replica.Empty(), head: head{requests: c.requests}, raw: []byte("x")}
		d, err := s.draft(p, p.state, s.nextHead(p.head, time.Unix(1, 0)), []record{{id: "r", failed: 0}}, false)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, op := range d.ops {
			if op.IsDelete() {
				got = string(op.RangeBytes())
			}
		}
		if got != c.want {
			t.Errorf("after %d requests: got %q trimmed, want %q", c.requests, got, c.want)
		}
	}
}

func TestConfig_Validate(t *testing.T) {
	good := Config{Name: "g", Node: "n", Endpoints: []string{"127.0.0.1:2379"}, Prefix: "p/"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(c *Config){
		"Name is required":       func(c *Config) { c.Name = "" },
		"Node is required":       func(c *Config) { c.Node = "" },
		"Endpoints of etcd":      func(c *Config) { c.Endpoints = nil },
		"ends with /":            func(c *Config) { c.Prefix = "p" },
		"at most 256":            func(c *Config) { c.Prefix = strings.Repeat("p", 256) + "/" },
		"come together":          func(c *Config) { c.Username = "u" },
		"1s to 1m":               func(c *Config) { c.LeaseTTL = time.Millisecond },
		"must not be negative":   func(c *Config) { c.LookEvery = -1 },
		"asks for TLS":           func(c *Config) { c.Endpoints = []string{"https://127.0.0.1:2379"} },
		"plain text although":    func(c *Config) { c.Endpoints = []string{"http://127.0.0.1:2379"}; c.TLS = &tls.Config{} },
		"endpoint \"\" is blank": func(c *Config) { c.Endpoints = []string{""} },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
