package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"bailiwick/controlplane"
)

// offline parses the flags that every command on a stopped node has, and opens the node.
func offline(flags *flag.FlagSet, args []string) (*controlplane.Offline, error) {
	dir := flags.String("dir", os.Getenv("BAILIWICK_DIR"), "data directory of the stopped node (BAILIWICK_DIR)")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if *dir == "" {
		return nil, errors.New(flags.Name() + ": -dir is required")
	}
	return controlplane.OpenOffline(*dir)
}

func inspect(args []string) error {
	flags := flag.NewFlagSet("inspect", flag.ContinueOnError)
	file := flags.String("file", "", "a backup to read and prove instead of the node's groups")
	node, err := offline(flags, args)
	if err != nil {
		return err
	}
	if *file == "" {
		return show(node)
	}
	return showBackup(node, *file)
}

func showBackup(node *controlplane.Offline, file string) error {
	info, err := node.InspectBackup(file)
	if info.Group != "" {
		fmt.Printf("%s of installation %s, sealed by zone %s, taken on %s at %s by %s; entry %d, revision %d.%d\n",
			info.Group, info.Installation, info.Zone, info.Node, info.TakenAt.Format(time.RFC3339), info.Program, info.Entry, info.Epoch, info.Index)
	}
	return err
}

// backupGroups takes backups of a stopped node; bailiwick backup does it on one that runs.
func backupGroups(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("backup", flag.ContinueOnError)
	node, err := offline(flags, args)
	if err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("backup: say which groups: catalog, store/ZONE, ledger/ZONE")
	}
	for _, name := range flags.Args() {
		b, left, err := node.Backup(ctx, name, version, time.Now())
		if err != nil {
			return err
		}
		fmt.Printf("%s: revision %d.%d, %d bytes, sha256 %s\n  %s\n", b.Group, b.Epoch, b.Index, b.Bytes, b.SHA256, b.Path)
		if left > 0 {
			fmt.Printf("  left out: %d entries of the log of which this node does not know whether they are committed; a node that runs knows, and recover takes them\n", left)
		}
	}
	return nil
}

func restore(args []string) error {
	var r controlplane.Restoring
	flags := flag.NewFlagSet("restore", flag.ContinueOnError)
	flags.StringVar(&r.File, "file", "", "the backup")
	flags.StringVar(&r.Operator, "operator", "", "who decides it; part of the signed record")
	flags.StringVar(&r.Reason, "reason", "", "why; part of the signed record")
	yes := flags.Bool("yes", false, "do it; without, only the backup is read and proved")
	node, err := offline(flags, args)
	if err != nil {
		return err
	}
	if !*yes {
		if err := showBackup(node, r.File); err != nil {
			return err
		}
		fmt.Println(`
It would take the place of what this node holds of the group, which is set aside; this node would be the group's only
member, in a new epoch. What was written after the backup is lost to the group. Nothing was changed: add -yes to do it.`)
		return nil
	}
	record, aside, err := node.Restore(r, time.Now())
	for _, path := range aside {
		fmt.Println("set aside:", path)
	}
	if err != nil {
		return err
	}
	for _, line := range controlplane.Summary(record) {
		fmt.Println(line)
	}
	fmt.Println("Start this node and let the others join anew with tokens of kind control.")
	return nil
}

// show prints what the node holds. Of the nodes that are left, the one with the greatest LAST TERM, then LAST, has all
// that was acknowledged.
func show(node *controlplane.Offline) error {
	found, err := node.Inspect()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "GROUP\tSERVER\tINCARNATION\tTERM\tLAST TERM\tLAST\tCOMMITTED\tSNAPSHOTS\tMEMBERS")
	for _, g := range found {
		server, snapshots, members := g.Member.Server, "", ""
		if g.Born {
			server = "(birth)"
		}
		for _, s := range g.Snapshots {
			snapshots += fmt.Sprintf("%d ", s.Index)
			if s.Err != nil {
				snapshots += "(unreadable) "
			}
		}
		for _, m := range g.Members {
			members += m.Server
			if !m.Voter {
				members += " (no vote)"
			}
			members += " "
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", g.Group, server, g.Member.Incarnation, g.Term, g.LastTerm, g.Last, g.Commit, snapshots, members)
	}
	err = errors.Join(w.Flush(), err)
	for _, name := range node.Outside() {
		fmt.Printf("%s rests in etcd: etcdctl endpoint status shows its cluster, and on the running node bailiwick cluster members who works for it\n", name)
	}
	return err
}

func recoverGroups(args []string) error {
	var r controlplane.Recovery
	flags := flag.NewFlagSet("recover", flag.ContinueOnError)
	flags.BoolVar(&r.Zone, "zone", false, "recover the zone's store and ledger")
	flags.BoolVar(&r.Catalog, "catalog", false, "recover the catalog; on a node of the primary zone")
	flags.StringVar(&r.Operator, "operator", "", "who decides it; part of the signed record")
	flags.StringVar(&r.Reason, "reason", "", "why; part of the signed record")
	yes := flags.Bool("yes", false, "do it; without, only what would be done is shown")
	node, err := offline(flags, args)
	if err != nil {
		return err
	}
	if err := r.Validate(); err != nil {
		return err
	}
	if !*yes {
		if err := show(node); err != nil {
			return err
		}
		fmt.Println(`
This node would become the only member of these groups, in a new epoch. What only other nodes have is lost; what this
node has counts as committed, also where nobody was ever told so. The other nodes' directories can never come back:
they join anew. Pairs that cross zones are closed until an operator approves them again. Choose the node with the
greatest LAST TERM, then LAST. Nothing was changed: add -yes to do it.`)
		return nil
	}
	record, err := node.Recover(r, time.Now())
	if err != nil {
		return err
	}
	for _, line := range controlplane.Summary(record) {
		fmt.Println(line)
	}
	fmt.Println("Start this node, let the others join anew with tokens of kind control, and approve the pairs that cross zones.")
	return nil
}
