package spool_test

import (
	"bytes"
	"os"
	"testing"
	"time"

	"bailiwick/dataplane/internal/spool"
	"bailiwick/shared/durable"
)

// rowsOf counts the segments in which rows of a customer lie.
func rowsOf(t *testing.T, dir, customer string) (n int) {
	t.Helper()
	names, _ := files(t, dir, "rows-")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(customer)) {
			n++
		}
	}
	return n
}

// Where few requests come a segment is full after weeks: its rows must not stay that long.
func TestSpool_ASegmentGoesByItsAge(t *testing.T) {
	now := time.Unix(1_764_000_000, 0)
	dir := t.TempDir()
	cfg := spool.Config{Dir: dir, Now: func() time.Time { return now }}
	s := open(t, cfg)
	add(t, s, "customer-one", 3)
	seal(t, s)
	now = now.Add(59 * time.Minute)
	seal(t, s)
	if rowsOf(t, dir, "customer-one") != 1 {
		t.Fatal("no segment holds the rows: the test cannot see them go")
	}
	now = now.Add(time.Minute)
	seal(t, s)
	if n := rowsOf(t, dir, "customer-one"); n != 0 {
		t.Errorf("rows in blocks lie in %d segments an hour later", n)
	}
	for range 3 { // a segment without rows does not age
		if err := s.Provide(); err != nil {
			t.Fatal(err)
		}
		if err := s.GroupCommit(); err != nil {
			t.Fatal(err)
		}
		was, _ := files(t, dir, "rows-")
		now = now.Add(2 * time.Hour)
		seal(t, s)
		if is, _ := files(t, dir, "rows-"); len(is) != len(was) || is[0] != was[0] {
			t.Errorf("segments = %v, before %v: nothing was in them", is, was)
		}
	}
	add(t, s, "customer-two", 2)
	s.Abandon()
	s = open(t, cfg)
	got := requests(t, pending(t, s))
	want(t, got, "customer-one", 3)
	want(t, got, "customer-two", 2)
}

// Whatever operation it dies at, or finds no space for, each row is counted once.
func TestSpool_DiesWhileASegmentGoes(t *testing.T) {
	reached := 0
	for left := range 12 {
		for _, full := range []int{0, 1, 3} {
			now := time.Unix(1_764_000_000, 0)
			dir := t.TempDir()
			sick := &sickFS{FS: durable.OS(), left: -1, half: left%2 == 0}
			cfg := fill(spool.Config{Dir: dir, FS: sick, Now: func() time.Time { return now }})
			s := open(t, cfg)
			add(t, s, "customer-one", 3)
			seal(t, s)
			now = now.Add(time.Hour)
			sick.left, sick.full = left, full
			for range 3 {
				if s.Seal() != nil {
					reached++
				}
			}
			sent := int64(2)
			add(t, s, "customer-two", 1)
			s.Seal()
			add(t, s, "customer-two", 1)
			s.Abandon()
			cfg.FS = durable.OS()
			s = open(t, cfg)
			got := requests(t, pending(t, s))
			want(t, got, "customer-one", 3)
			want(t, got, "customer-two", sent)
			s.Abandon()
		}
	}
	if reached == 0 {
		t.Error("nothing failed: the test does not reach what it is about")
	}
}
