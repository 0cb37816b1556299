package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"bailiwick/controlplane"
)

func join(ctx context.Context, args []string) error {
	var j controlplane.Joining
	flags := flag.NewFlagSet("join", flag.ContinueOnError)
	flags.StringVar(&j.Dir, "dir", os.Getenv("BAILIWICK_DIR"), "data directory of the new node; what it holds is set aside (BAILIWICK_DIR)")
	flags.StringVar(&j.Name, "name", "", "the node's name, as the token says; one that exists is replaced")
	flags.StringVar(&j.Region, "region", "", "its region, as the token says")
	flags.StringVar(&j.AdminURL, "admin", "", "https URL that people and edges will reach it at")
	flags.StringVar(&j.PeerAddr, "peer", "", "host:port that other nodes will reach it at, TCP and UDP")
	control := flags.String("control", "", "admin URLs of control nodes of the zone, comma separated")
	caFile := flags.String("ca-file", "", "what their certificates are verified with")
	tokenFile := flags.String("join-token-file", "", "file with a join token of kind control")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *caFile == "" || *tokenFile == "" || *control == "" {
		return errors.New("join: -control, -ca-file and -join-token-file are required")
	}
	var err error
	if j.RootsPEM, err = os.ReadFile(*caFile); err != nil {
		return err
	}
	token, err := os.ReadFile(*tokenFile)
	if err != nil {
		return err
	}
	j.Token, j.Control = strings.TrimSpace(string(token)), strings.Split(*control, ",")
	aside, err := controlplane.Join(ctx, j)
	for _, path := range aside {
		fmt.Println("set aside:", path)
	}
	if err != nil {
		return err
	}
	fmt.Printf("%s holds the kit of %s. Run: bailiwick-control run -dir %s; bailiwick cluster members shows when it has its votes.\n", j.Dir, j.Name, j.Dir)
	return nil
}
