%% Evaluated inside a RabbitMQ node at its start: answers the driver's questions about the queue `chat`, by TCP.
%%
%%   running          the number of running members of the cluster
%%   status           LEADER TERM APPLIED, of the local member of the queue's Raft group; LEADER is none without one
%%   read FIRST LAST  entries of the local member's own log: INDEX SENDER NUMBER BASE64 for a message, else INDEX
spawn(fun() ->
    {ok, Listening} = gen_tcp:listen(
        @PORT@, [binary, {ip, {@IP@}}, {packet, line}, {active, false}, {reuseaddr, true}, {backlog, 64}]),
    Name = '%2F_chat',
    Entry = fun
        ({Index, _, {'$usr', _, {enqueue, Sender, Number, {basic_message, _, _, Content, _, _}}, _}}) ->
            Body = base64:encode(iolist_to_binary(lists:reverse(element(6, Content)))),
            [io_lib:format("~b ~b ~w ", [Index, erlang:phash2(Sender), Number]), Body, $\n];
        ({Index, _, _}) ->
            io_lib:format("~b~n", [Index])
    end,
    Answer = fun
        (["running"]) ->
            io_lib:format("~b~n", [length(rabbit_mnesia:cluster_nodes(running))]);
        (["status"]) ->
            {ok, {{Applied, Term}, _}, Leader} = ra:local_query({Name, node()}, fun(_) -> ok end),
            io_lib:format("~s ~b ~b~n", [case Leader of {_, Node} -> Node; _ -> none end, Term, Applied]);
        (["read", First, Last]) ->
            Reader = ra:register_external_log_reader({Name, node()}),
            {Entries, _, _} = ra_log_reader:read(list_to_integer(First), list_to_integer(Last), Reader),
            lists:map(Entry, lists:keysort(1, Entries))
    end,
    Serve = fun(Socket) ->
        {ok, Line} = gen_tcp:recv(Socket, 0),
        Said = try Answer(string:lexemes(binary_to_list(Line), " \n"))
            catch _:Reason -> io_lib:format("error ~0p~n", [Reason])
        end,
        gen_tcp:send(Socket, [Said, "end\n"]),
        gen_tcp:close(Socket)
    end,
    Loop = fun Loop() ->
        {ok, Socket} = gen_tcp:accept(Listening),
        spawn(fun() -> receive go -> Serve(Socket) end end) ! go,
        Loop()
    end,
    Loop()
end).
