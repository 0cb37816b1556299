package main

import (
	"os"
	"testing"
)

// TestModel is the smoke: each model whole within its smaller bounds, every guard missing once, everything reached.
func TestModel(t *testing.T) {
	if missing := lacks(); missing != "" {
		if os.Getenv("BAILIWICK_CI") != "" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	for _, s := range searches {
		if s.Long {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			r, err := s.search(t.Context(), false)
			if err == nil {
				err = s.judge(r)
			}
			if err != nil {
				t.Errorf("%s, to see: %s: %v", s.Want, s.Why, err)
			}
		})
	}
}

// TestJudge: a search that finds nothing, or not all, does not pass for one that does.
func TestJudge(t *testing.T) {
	for name, c := range map[string]struct {
		want string
		r    result
		ok   bool
	}{
		"holds":                   {holds, result{Whole: true}, true},
		"holds, failed":           {holds, result{Failed: "x"}, false},
		"holds, cut short":        {holds, result{}, false},
		"breaks":                  {breaks, result{Failed: "x"}, true},
		"breaks, nothing found":   {breaks, result{Whole: true}, false},
		"breaks, by asking":       {breaks, result{Failed: asked}, false},
		"reaches":                 {reaches, result{Failed: asked}, true},
		"reaches, nothing found":  {reaches, result{Whole: true}, false},
		"reaches, another failed": {reaches, result{Failed: "x"}, false},
	} {
		if err := (search{Want: c.want}).judge(c.r); (err == nil) != c.ok {
			t.Errorf("%s: judged %v", name, err)
		}
	}
}
