package uptime_test

import (
	"reflect"
	"testing"

	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/uptime"
)

func TestJudge(t *testing.T) {
	regions := []model.Region{{Name: "eu-west", Zone: "emea"}, {Name: "eu-central", Zone: "emea"}, {Name: "eu-north", Zone: "emea", ControlOnly: true}, {Name: "us-east", Zone: "us"}, {Name: "eu-south", Zone: "emea", Drain: "moves"}}
	look := func(edge string, dead ...string) uptime.Outlook {
		o := uptime.Outlook{Edge: edge, Alive: map[string]bool{"eu-west": true, "eu-south": true}}
		for _, r := range dead {
			o.Alive[r] = false
		}
		return o
	}
	state := func(region, state string, observers, against int) model.RegionState {
		return model.RegionState{Region: region, State: state, Observers: observers, Against: against}
	}
	for _, c := range []struct {
		name string
		in   []uptime.Outlook
		want model.RegionState // of eu-west
	}{
		{"nobody looks", nil, state("eu-west", model.RegionUnknown, 0, 0)},
		{"all see it", []uptime.Outlook{look("a"), look("b")}, state("eu-west", model.RegionUp, 2, 0)},
		{"one of two does not", []uptime.Outlook{look("a"), look("b", "eu-west")}, state("eu-west", model.RegionUp, 2, 1)},
		{"most do not", []uptime.Outlook{look("a", "eu-west"), look("b", "eu-west"), look("c")}, state("eu-west", model.RegionDown, 3, 2)},
	} {
		got := uptime.Judge("emea", regions, c.in)
		if len(got) != 3 || got[2] != c.want || got[0] != state("eu-central", model.RegionUnknown, 0, 0) || got[1].State != model.RegionDrained {
			t.Errorf("%s: got %+v, want eu-west %+v", c.name, got, c.want)
		}
	}
	if got := uptime.Judge("us", regions, nil); !reflect.DeepEqual(got, []model.RegionState{state("us-east", model.RegionUnknown, 0, 0)}) {
		t.Errorf("another zone: %+v", got)
	}
}
